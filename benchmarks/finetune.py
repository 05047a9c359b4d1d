"""Pairs a second of contrastive training, beside sentence-transformers' trainer with its Cached loss; and GradCache.

    python benchmarks/finetune.py main --model MODEL --train DIR --small-model MODEL [--rounds 3] [--json FILE]

MODEL: what `llara finetune --model` takes; DIR: a BEIR folder with qrels/train.tsv. Both systems train all weights of
the same checkpoint in fp32 with AdamW, on the same batches of query, positive and one negative, cut alike; each in a
process of its own that keeps its model, by turns; a ratio is of the same round. The rival gets the best of the
mini-batches tried (one step each, in a process of its own), and stands beside with its plain loss. First losses are
told too: they must agree. Peak memory is each process' own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from llara_cli.core.workspace import Workspace
from llara_cli.data.training_rows import read_training_rows
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Sequencer
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import PAPER
from llara_cli.model.source import resolve
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss
from llara_cli.training.preparation import CPU_TOKENS
from llara_cli.training.probe import peak_memory

LENGTH, QUERY_LENGTH, TEMPERATURE, RATE = 96, 64, 0.05, 1e-5
OURS = (CPU_TOKENS, 512, 4096)
"""Tokens of a forward that ours tries: the default, less, and more."""
RIVAL = "sentence-transformers"
PLAIN = 0
THEIRS = (PLAIN, 2, 4, 8, 16)
"""Mini-batches that the Cached loss tries, and the plain loss, which keeps everything."""
app = typer.Typer()


def triples(train: Path, tokenizer: TextTokenizer, count: int) -> list[tuple[str, str, str]]:
    """Query, positive and another row's positive, each cut to the lengths, prompts counted."""
    rows = [row for _, row in zip(range(50 * count), read_training_rows(train), strict=False)]
    rows = list({row.positives[0]: row for row in rows}.values())[: count + 1]

    def cut(text: str, limit: int) -> str:
        return str(tokenizer.hf.decode(tokenizer.encode([text], limit - 8)[0], skip_special_tokens=True)).strip()

    return [
        (cut(row.query, QUERY_LENGTH), cut(row.positives[0], LENGTH), cut(other.positives[0], LENGTH))
        for row, other in pairwise(rows)
    ]


class Ours:
    """The objective, clipping and AdamW, as the loop runs them."""

    def __init__(self, model: str, rows: Sequence[tuple[str, str, str]]) -> None:
        source = resolve(model, Workspace(Path(tempfile.gettempdir())))
        tokenizer = TextTokenizer.load(source)
        self.causal = load_causal_lm(source, torch.float32).train()
        sequencer = Sequencer(tokenizer, PAPER, {"query": QUERY_LENGTH, "passage": LENGTH + 8})
        loss = ContrastiveLoss(TEMPERATURE, mask_false_negatives=False)
        decoder = Decoder(self.causal)
        decoder.train_lean()
        self.objective = ContrastiveObjective(decoder, PAPER, sequencer, OURS[0], loss)
        self.optimizer = torch.optim.AdamW(self.causal.parameters(), lr=RATE, weight_decay=0.0, fused=True)
        self.groups = [
            Group(query, passages, [identity(text, None) for text in passages], identity(passages[0], None))
            for query, *passages in rows
        ]

    def run(self, setting: int, batch: int, steps: int, *, warm: bool) -> dict[str, float]:
        """Seconds of so many steps, and the first loss."""
        self.objective.budget = setting
        self.optimizer.param_groups[0]["lr"] = 0.0 if warm else RATE
        losses, started = [], time.monotonic()
        for step in range(steps):
            at = step * batch
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self.objective.backward(self.groups[at : at + batch]).loss)
            torch.nn.utils.clip_grad_norm_(self.causal.parameters(), 1.0)
            self.optimizer.step()
        return {"seconds": time.monotonic() - started, "loss": losses[0]}


class Theirs:
    """sentence-transformers' trainer."""

    def __init__(self, model: str, rows: Sequence[tuple[str, str, str]]) -> None:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        source = resolve(model, Workspace(Path(tempfile.gettempdir())))
        tokenizer = TextTokenizer.load(source)
        folder = tempfile.mkdtemp()
        load_causal_lm(source, torch.float32).save_pretrained(folder)
        tokenizer.hf.pad_token = tokenizer.hf.pad_token or tokenizer.hf.eos_token
        tokenizer.hf.chat_template = None  # it would put texts into a chat
        tokenizer.save(Path(folder))
        body = Transformer(folder, max_seq_length=LENGTH + 16, model_kwargs={"attn_implementation": "sdpa"})
        self.model = SentenceTransformer(
            modules=[body, Pooling(body.get_embedding_dimension(), "lasttoken")], device="cpu"
        )
        end = tokenizer.hf.eos_token
        ends = [f" {PAPER.prompts[branch].text}{end}" for branch in ("next", "self", "self")]
        columns = zip(("anchor", "positive", "negative"), ends, zip(*rows, strict=True), strict=True)
        self.data = Dataset.from_dict({name: [text + tail for text in texts] for name, tail, texts in columns})

    def run(self, setting: int, batch: int, steps: int, *, warm: bool) -> dict[str, float]:
        """Seconds that the trainer tells for so many steps, and its loss at the first batch."""
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
            MultipleNegativesRankingLoss,
        )
        from torch.utils.data import SequentialSampler

        class InOrder(SentenceTransformerTrainer):
            def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **rest: Any) -> Any:
                return torch.utils.data.BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

        if setting == PLAIN:
            loss: Any = MultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE)
        else:
            loss = CachedMultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE, mini_batch_size=setting)
        arguments = SentenceTransformerTrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps, save_strategy="no", report_to=[],
            use_cpu=True, logging_steps=1, disable_tqdm=True, learning_rate=0.0 if warm else RATE, warmup_steps=0,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(model=self.model, args=arguments, train_dataset=self.data, loss=loss)
        done = trainer.train()
        return {"seconds": done.metrics["train_runtime"], "loss": trainer.state.log_history[0]["loss"]}


@app.command()
def worker(system: str, model: str, rows: Path, threads: int) -> None:
    """Read tasks as JSON lines, answer each with a JSON line."""
    torch.set_num_threads(threads)
    answers = sys.stdout
    sys.stdout = sys.stderr
    made = (Theirs if system == RIVAL else Ours)(model, json.loads(rows.read_text()))
    for line in sys.stdin:
        done = made.run(**json.loads(line))
        answers.write(json.dumps(done | {"peak_memory": peak_memory(torch.device("cpu"))}) + "\n")
        answers.flush()


class Worker:
    """A process that keeps its model and runs what it is told."""

    def __init__(self, system: str, model: str, rows: Path, threads: int) -> None:
        command = [sys.executable, __file__, "worker", system, model, str(rows), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, setting: int, batch: int, steps: int, *, warm: bool = False) -> dict[str, float]:
        """One task."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        task = {"setting": setting, "batch": batch, "steps": steps, "warm": warm}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def tried(
    system: str, settings: Sequence[int], make: Callable[[str], Worker], batch: int
) -> dict[int, dict[str, float]]:
    """Pairs a second of one step and peak memory at each setting, each in a process of its own."""
    found = {}
    for setting in settings:
        trial = make(system)
        trial.run(setting, 4, 1, warm=True)
        done = trial.run(setting, batch, 1, warm=True)
        trial.close()
        found[setting] = {"pairs_per_second": batch / done["seconds"], "peak_memory": done["peak_memory"]}
        print(f"{system}, {setting}: {found[setting]['pairs_per_second']:.3f} pairs/s", flush=True)
    return found


def speed(make: Callable[[str], Worker], batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Ours at its default, the rival at its fastest mini-batch and with its plain loss, by turns."""
    trials = {"llara": tried("llara", OURS, make, batch), RIVAL: tried(RIVAL, THEIRS, make, batch)}
    cached = {key: row["pairs_per_second"] for key, row in trials[RIVAL].items() if key != PLAIN}
    settings = {"llara": OURS[0], RIVAL: max(cached, key=lambda key: cached[key]), f"{RIVAL}, plain": PLAIN}
    workers = {name: make(name.split(",")[0]) for name in settings}
    first = {name: worker.run(settings[name], batch, 1, warm=True) for name, worker in workers.items()}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers)[:: 1 if number % 2 else -1]:
            measured[name].append(workers[name].run(settings[name], batch, steps))
            print(f"{name}: {batch * steps / measured[name][-1]['seconds']:.3f} pairs/s", flush=True)
    for each in workers.values():
        each.close()
    seconds = {name: [row["seconds"] for row in found] for name, found in measured.items()}
    ratios = {
        name: [b / a for a, b in zip(seconds["llara"], theirs, strict=True)]
        for name, theirs in seconds.items() if name != "llara"
    }  # fmt: skip
    return {
        "batch": batch, "steps": steps, "settings": settings, "tried": trials,
        "pairs_per_second": {name: batch * steps / statistics.median(found) for name, found in seconds.items()},
        "ratio": {name: statistics.median(found) for name, found in ratios.items()}, "ratios": ratios,
        "first_loss": {name: found["loss"] for name, found in first.items()},
        "peak_memory": {name: max(row["peak_memory"] for row in found) for name, found in measured.items()},
    }  # fmt: skip


def grad_cache(make: Callable[[str], Worker]) -> dict[str, Any]:
    """Peak memory of a step of 16 and of 1,024 queries, each in a process of its own."""
    found = {}
    for batch in (16, 1024):
        each = make("llara")
        found[str(batch)] = each.run(OURS[0], batch, 1)["peak_memory"]
        each.close()
    return {"peak_memory": found, "ratio": found["1024"] / found["16"]}


@app.command()
def main(
    model: Annotated[str, typer.Option()],
    train: Annotated[Path, typer.Option()],
    small_model: Annotated[str, typer.Option()],
    batch: int = 16,
    steps: int = 2,
    rounds: int = 3,
    threads: int = 2,
    only_grad_cache: Annotated[bool, typer.Option(help="Keep the file's other figures.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure."""
    tokenizer = TextTokenizer.load(resolve(model, Workspace(Path(tempfile.gettempdir()))))
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        few = triples(train, tokenizer, batch * steps)
        assert len(few) >= batch * steps, f"{train}: only {len(few)} different positives"
        rows.write_text(json.dumps(few))
        if only_grad_cache:
            assert as_json is not None
            result: dict[str, Any] = json.loads(as_json.read_text())
        else:
            result = {"model": Path(model).name, "threads": threads, "rounds": rounds}
            result |= speed(lambda system: Worker(system, model, rows, threads), batch, steps, rounds)
            keep(result, as_json)
        rows.write_text(json.dumps((few * -(-1024 // len(few)))[:1024]))
        found = grad_cache(lambda system: Worker(system, small_model, rows, threads))
        result["grad_cache"] = {"model": Path(small_model).name, **found}
    print(json.dumps(result, indent=1))
    keep(result, as_json)


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write down what there is so far."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()
