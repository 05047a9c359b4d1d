"""Texts a second of pre-training, beside the authors' way and two padded passes, interleaved in one run, on a CPU.

    python benchmarks/pretrain.py CORPUS [--rounds 5] [--threads 2] [--json FILE]

CORPUS: a folder of .jsonl[.gz] articles ({"text": ...}); a 32,000-token vocabulary is trained on it. Models have the
shape of a 30 M Llama and of SmolLM2-135M, random weights. Every system tries its micro-batch sizes first and keeps the
fastest; the authors' way is also reported at every size that it tried.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rivals import Authors, TwoPasses
from texts import Texts
from transformers import AutoModelForCausalLM, LlamaConfig

from llara_cli.model.backbone import ROW_TOKENS, Backbone
from llara_cli.model.batching import Batching
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.products import product
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.tokens import PromptIds
from llara_cli.training.pretext import Example, PretextObjective
from llara_cli.training.probe import peak_memory, resident_memory
from llara_cli.training.run import MICRO_BATCH_TOKENS

SHAPES: dict[str, dict[str, Any]] = {
    "30M": {
        "vocab_size": 32016, "hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 8,
        "num_attention_heads": 7, "num_key_value_heads": 7,
    },
    "135M": {
        "vocab_size": 49168, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
}  # fmt: skip
BATCH = {"mixed": 48, "full": 12}
"""Texts of an optimiser batch."""
TRIAL = {"mixed": 48, "full": 8}
"""Texts that a setting is tried on: of mixed ones a whole batch, as the lengths in a part may suit another setting."""
TRIES = 2
"""Times that a setting is tried; its fastest counts."""
System = Callable[[Sequence[Example]], float]


def model_of(shape: str) -> Backbone:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape], tie_word_embeddings=True))
    return Backbone(model.train())


def ours(backbone: Backbone, texts: Texts, recipe: Recipe, budget: int) -> System:
    """Our objective, as the command runs it."""
    backbone = Backbone(backbone.model)
    backbone.train_lean()
    objective = PretextObjective(backbone, recipe, texts.prompts(recipe), Batching("packed", budget, ROW_TOKENS))
    return lambda examples: objective.backward(examples).loss


def systems(backbone: Backbone, texts: Texts) -> dict[str, tuple[Recipe, dict[str, System]]]:
    """Every system with its recipe, by the micro-batch settings that it may choose from."""
    released, paper = texts.prompts(RELEASED), texts.prompts(PAPER)
    budgets = (1024, 2048)
    sizes = (1, 2, 4, 8)
    found: dict[str, tuple[Recipe, dict[str, System]]] = {}
    for recipe in (PAPER, RELEASED):
        ways = {f"{budget} tokens": ours(backbone, texts, recipe, budget) for budget in budgets}
        found[f"llara {recipe.name}"] = (recipe, ways)
    found["authors"] = (RELEASED, {f"{size} texts": Authors(backbone, released, size).backward for size in sizes})
    for by_length in (False, True):
        name = "two passes, by length" if by_length else "two passes"
        ways = {f"{size} texts": TwoPasses(backbone, paper, size, by_length).backward for size in sizes}
        found[name] = (PAPER, ways)
    return found


def step(
    backbone: Backbone, system: System, examples: Sequence[Example], optimiser: torch.optim.Optimizer
) -> tuple[float, float]:
    """Seconds and loss of one optimiser step; the weights stay as they are, as the rate is nothing."""
    optimiser.zero_grad(set_to_none=True)
    started = time.perf_counter()
    loss = system(examples)
    torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
    optimiser.step()
    return time.perf_counter() - started, loss


def matmul_peak() -> float:
    """FLOP/s of a large square product, by whichever library multiplies it fastest."""
    left, best = torch.randn(1536, 1536), 0.0
    for multiply in (torch.matmul, product) * 8:
        started = time.perf_counter()
        multiply(left, left)
        best = max(best, 2 * 1536**3 / (time.perf_counter() - started))
    return best


def compare(shape: str, kind: str, texts: Texts, rounds: int) -> dict[str, Any]:
    """One model, one kind of text: each system's best setting, its median rate, its loss."""
    backbone = model_of(shape)
    optimiser = torch.optim.AdamW(backbone.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    every = systems(backbone, texts)
    batches = {recipe.name: texts.examples(kind, recipe, BATCH[kind] * (rounds + 1)) for recipe in (PAPER, RELEASED)}
    chosen: dict[str, str] = {}
    tried: dict[str, dict[str, float]] = {}
    for name, (recipe, ways) in every.items():
        batch = batches[recipe.name][: TRIAL[kind]]
        tried[name] = dict.fromkeys(ways, 0.0)
        for way, system in [*ways.items()] * TRIES:
            rate = len(batch) / step(backbone, system, batch, optimiser)[0]
            tried[name][way] = max(tried[name][way], rate)
        chosen[name] = max(tried[name], key=tried[name].__getitem__)
        print(f"  {name}: {chosen[name]}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    losses: dict[str, list[float]] = {name: [] for name in every}
    peaks: list[float] = []
    for number in range(rounds):
        part = slice((number + 1) * BATCH[kind], (number + 2) * BATCH[kind])
        peaks.append(matmul_peak())
        for name, (recipe, ways) in every.items():
            taken, loss = step(backbone, ways[chosen[name]], batches[recipe.name][part], optimiser)
            seconds[name].append(taken)
            losses[name].append(loss)
    return report(shape, kind, backbone, texts, batches, seconds, losses, tried, max(peaks))


def report(
    shape: str, kind: str, backbone: Backbone, texts: Texts, batches: dict[str, list[Example]],
    seconds: dict[str, list[float]], losses: dict[str, list[float]], tried: dict[str, dict[str, float]], peak: float,
) -> dict[str, Any]:  # fmt: skip
    """Rates, ratios of the same round, agreement of losses, share of the matmul peak."""
    mine = {"paper": "llara paper", "released": "llara released"}
    rates = {name: BATCH[kind] / statistics.median(taken) for name, taken in seconds.items()}
    rivals = {"authors": "released", "two passes": "paper", "two passes, by length": "paper"}
    at_peak = {  # texts a second
        recipe.name: peak / flops(backbone, texts.prompts(recipe), recipe, batches[recipe.name])
        for recipe in (PAPER, RELEASED)
    }
    return {
        "model": shape,
        "texts": kind,
        "mean_tokens": float(np.mean([len(example.text) for example in batches["paper"]])),
        "texts_per_second": rates,
        "ratio": {rival: ratio(seconds[rival], seconds[mine[recipe]]) for rival, recipe in rivals.items()},
        "ratio_at_peak": {rival: at_peak[recipe] / rates[rival] for rival, recipe in rivals.items()},
        "loss_difference": {rival: apart(losses[rival], losses[mine[recipe]]) for rival, recipe in rivals.items()},
        "share_of_matmul_peak": {recipe: rates[mine[recipe]] / most for recipe, most in at_peak.items()},
        "matmul_gflops": peak / 1e9,
        "chosen": {name: max(ways, key=ways.__getitem__) for name, ways in tried.items()},
        "tried_texts_per_second": tried,
    }


def ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """How many times faster ours was, the median over rounds."""
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


def apart(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """The largest relative difference of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(theirs, mine, strict=True))


def flops(backbone: Backbone, prompts: PromptIds, recipe: Recipe, examples: Sequence[Example]) -> float:
    """FLOPs that a text needs, attention not counted: 6 a weight and token, 6 a weight and row of logits.

    Whoever takes these losses of each text on its own multiplies as much: the ratio to a rival is bounded by it.
    """
    text = sum(len(example.text) for example in examples) / len(examples)
    linear = sum(m.weight.numel() for m in backbone.body.modules() if isinstance(m, torch.nn.Linear))
    logits = 2 * prompts.slots + (text if recipe.language_model_loss else 0)
    return float(6 * (linear * (text + prompts.overhead()) + logits * backbone.vocabulary * backbone.dim))


def grown(shape: str, texts: Texts, recipe: Recipe, way: str, examples: list[Example], answer: Any) -> None:
    """In a process of its own: bytes of resident memory that one step adds to the model's, gradients included."""
    backbone = model_of(shape)
    prompts = texts.prompts(recipe)
    if way == "authors":
        system: System = Authors(backbone, prompts, len(examples)).backward
    else:
        system = ours(backbone, texts, recipe, int(way))
    gc.collect()
    before = resident_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    system(examples)
    answer.send(peak_memory(torch.device("cpu")) - before)


def memory(shape: str, texts: Texts) -> dict[str, Any]:
    """Peak of one step on the same batch: the authors' one forward, ours in our forwards, ours in one forward."""
    examples = texts.examples("full", RELEASED, 8)
    found = {}
    for name, way in {
        "authors": "authors",
        "llara": str(MICRO_BATCH_TOKENS["cpu"]),
        "llara, one forward": str(8 * 512),
    }.items():
        receiver, sender = multiprocessing.get_context("fork").Pipe(False)
        child = multiprocessing.get_context("fork").Process(
            target=grown, args=(shape, texts, RELEASED, way, examples, sender)
        )
        child.start()
        found[name] = receiver.recv() / 2**20
        child.join()
    return {"model": shape, "texts": 8, "mib": found, "ratio": found["llara"] / found["authors"]}


def keep(path: Path, threads: int, speed: dict[str, Any], used: list[dict[str, Any]]) -> None:
    """Put a comparison into the JSON file; those of other models and texts in it stay."""
    known = json.loads(path.read_text()) if path.exists() else {"speed": [], "memory": []}
    others = [row for row in known["speed"] if (row["model"], row["texts"]) != (speed["model"], speed["texts"])]
    shapes = {row["model"] for row in used}
    memories = [row for row in known["memory"] if row["model"] not in shapes] + used
    memories.sort(key=lambda row: list(SHAPES).index(row["model"]))
    order = [(shape, kind) for shape in SHAPES for kind in BATCH]
    rows = sorted([*others, speed | {"threads": threads}], key=lambda row: order.index((row["model"], row["texts"])))
    path.write_text(json.dumps({"speed": rows, "memory": memories}, indent=1) + "\n")


def main(
    corpus: Path,
    rounds: int = 5,
    threads: int = 2,
    shapes: Annotated[str, typer.Option(help="Comma-separated.")] = "30M,135M",
    kinds: Annotated[str, typer.Option(help="Comma-separated.")] = "mixed,full",
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compare all systems on every model and kind of text."""
    texts = Texts(corpus)
    torch.set_num_threads(1)  # a process that has used OpenMP cannot fork
    used = [memory(shape, texts) for shape in shapes.split(",")]
    torch.set_num_threads(threads)
    for shape, kind in itertools.product(shapes.split(","), kinds.split(",")):
        found = compare(shape, kind, texts, rounds)
        print(json.dumps(found), flush=True)
        if as_json is not None:
            keep(as_json, threads, found, used)


if __name__ == "__main__":
    typer.run(main)
