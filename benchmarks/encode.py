"""Passages a second of encoding, beside sentence-transformers and the authors' published snippet, interleaved.

    python benchmarks/encode.py --model MODEL --collection DIR --collection DIR [--rounds 3] [--threads 2] [--json FILE]

Each DIR is a BEIR folder. Passages are drawn from all of them, a third of ``--texts`` a round; every round runs all
systems on the same passages, and ratios are of the same round. Rivals get the same weights, prompts, attention (SDPA),
threads and dtype; sentence-transformers also the best of the batch sizes tried. Vectors must agree.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from pretrain import matmul_peak
from sentence_transformers import SentenceTransformer
from sentence_transformers import __version__ as their_version
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch.nn import functional
from transformers import AutoModel

from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import BATCH_TOKENS, Encoder, Sequencer
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.source import ModelSource, resolve
from llara_cli.model.tokenizer import TextTokenizer

LENGTH = 512
SIZES = (1, 2, 4, 8, 16, 32)
"""Batches that sentence-transformers tries."""
BUDGETS = (512, 1024, 2048, 4096)
"""Tokens of a forward that ours tries; the default is what is compared."""
SNIPPET_BATCH = 16
System = Callable[[Sequence[str]], np.ndarray]


def passages(collections: Sequence[Path], count: int, tokenizer: TextTokenizer) -> list[str]:
    """As many from each collection, drawn by seed; those that would be cut are passed over."""
    found: list[str] = []
    for collection in collections:
        every = [document.passage for document in read_documents(BeirFolder(collection).corpus)]
        order = np.random.default_rng(0).permutation(len(every))[: 2 * count]
        short = [every[n] for n, ids in zip(order, tokenizer.encode([every[n] for n in order]), strict=True)
                 if 0 < len(ids) < LENGTH - 40]  # fmt: skip
        found += short[: count // len(collections)]
    return [found[n] for n in np.random.default_rng(1).permutation(len(found))]


class Systems:
    """The same weights three times."""

    def __init__(self, source: ModelSource, folder: Path) -> None:
        tokenizer = TextTokenizer.load(source)
        model = load_causal_lm(source, torch.float32).eval()
        add_new_tokens(model, tokenizer, RELEASED.new_tokens, seed=0)
        model.save_pretrained(folder)
        tokenizer.hf.padding_side = "left"
        if tokenizer.hf.pad_token is None:
            tokenizer.hf.pad_token = tokenizer.hf.eos_token
        tokenizer.hf.chat_template = None  # sentence-transformers would put passages into a chat
        tokenizer.save(folder)
        self.tokenizer = tokenizer
        self.decoder = Decoder(model)
        self.parameters = sum(
            layer.weight.numel() for layer in self.decoder.body.modules() if isinstance(layer, torch.nn.Linear)
        )
        self._folder = folder

    def ours(self, recipe: Recipe, budget: int | None = None) -> System:
        """The engine of ``llara encode``."""
        encoder = Encoder(self.decoder, recipe, Sequencer(self.tokenizer, recipe, {"passage": LENGTH}), budget)
        return lambda texts: encoder.encode(texts, "passage").vectors

    def sentence_transformers(self) -> Callable[[int], System]:
        """Their ``encode`` of text and prompt as one text, last token, by batch size."""
        module = Transformer(str(self._folder), max_seq_length=LENGTH, model_kwargs={"attn_implementation": "sdpa"})
        pooling = Pooling(module.get_embedding_dimension(), "lasttoken")
        model = SentenceTransformer(modules=[module, pooling, Normalize()], device="cpu")
        prompt = PAPER.prompts["self"]
        end = self.tokenizer.hf.eos_token

        def of(size: int) -> System:
            def encode(texts: Sequence[str]) -> np.ndarray:
                whole = [f"{PAPER.prefix}{text} {prompt.text}{end}" for text in texts]
                return np.asarray(model.encode(whole, batch_size=size, show_progress_bar=False))

            return encode

        return of

    def snippet(self) -> System:
        """As the authors' model card encodes passages: left-padded, in the order given, mean of the eight slots."""
        tokenizer = self.tokenizer.hf
        model = AutoModel.from_pretrained(self._folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        sequencer = Sequencer(self.tokenizer, RELEASED, {"passage": LENGTH})

        @torch.no_grad()
        def encode(texts: Sequence[str]) -> np.ndarray:
            found = []
            for at in range(0, len(texts), SNIPPET_BATCH):
                trees = sequencer.trees(texts[at : at + SNIPPET_BATCH], "passage").trees
                ids = [[*tree.trunk, *tree.branches[0]] for tree in trees]
                batch = tokenizer.pad({"input_ids": ids}, padding=True, pad_to_multiple_of=8, return_tensors="pt")
                states = model(**batch, return_dict=True, output_hidden_states=True).hidden_states[-1]
                found.append(functional.normalize(states[:, -8:].mean(dim=1), dim=-1))
            return torch.cat(found).numpy()

        return encode


def timed(system: System, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Seconds, and the vectors."""
    started = time.perf_counter()
    vectors = system(texts)
    return time.perf_counter() - started, vectors


def best(ways: dict[str, System], texts: Sequence[str]) -> dict[str, float]:
    """Texts a second of each way, one measurement each after a first one to warm up."""
    next(iter(ways.values()))(texts[:4])
    return {name: len(texts) / timed(way, texts)[0] for name, way in ways.items()}


def compare(systems: Systems, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every system on every round's texts."""
    by_size = systems.sentence_transformers()
    trial = texts[:: max(1, len(texts) // 48)][:48]
    theirs = best({str(size): by_size(size) for size in SIZES}, trial)
    mine = best({str(budget): systems.ours(PAPER, budget) for budget in BUDGETS}, trial)
    size = int(max(theirs, key=theirs.__getitem__))
    every: dict[str, System] = {
        "llara paper": systems.ours(PAPER),
        "sentence-transformers": by_size(size),
        "llara released": systems.ours(RELEASED),
        "published snippet": systems.snippet(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in every}
    apart = {"sentence-transformers": 0.0, "published snippet": 0.0}
    peak = 0.0
    for part in np.array_split(np.arange(len(texts)), rounds):
        batch, vectors = [texts[number] for number in part], {}
        peak = max(peak, matmul_peak())
        for name, system in every.items():
            taken, vectors[name] = timed(system, batch)
            seconds[name].append(taken)
            print(f"  {name}: {len(batch) / taken:.2f} texts/s", flush=True)
        for rival, own in (("sentence-transformers", "llara paper"), ("published snippet", "llara released")):
            apart[rival] = max(apart[rival], float(np.abs(vectors[rival] - vectors[own]).max()))
    return report(systems, texts, seconds, peak) | {
        "vectors_apart": apart,
        "chosen": {"sentence-transformers": size, "llara": BATCH_TOKENS["cpu"], "published snippet": SNIPPET_BATCH},
        "tried_texts_per_second": {"sentence-transformers": theirs, "llara": mine},
    }


def report(systems: Systems, texts: Sequence[str], seconds: dict[str, list[float]], peak: float) -> dict[str, Any]:
    """Rates, ratios of the same round, share of the matmul peak."""
    sequencer = Sequencer(systems.tokenizer, PAPER, {"passage": LENGTH})
    tokens = sum(len(tree) for tree in sequencer.trees(texts, "passage").trees)
    pairs = {"sentence-transformers": "llara paper", "published snippet": "llara released"}
    return {
        "texts": len(texts),
        "mean_tokens": tokens / len(texts),
        "texts_per_second": {name: len(texts) / sum(taken) for name, taken in seconds.items()},
        "ratio": {
            rival: statistics.median(a / b for a, b in zip(seconds[rival], seconds[own], strict=True))
            for rival, own in pairs.items()
        },
        "share_of_matmul_peak": 2 * systems.parameters * tokens / sum(seconds["llara paper"]) / peak,
        "matmul_gflops": peak / 1e9,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Texts a second of every setting that was tried, and of every system in the rounds."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    tried = found["tried_texts_per_second"]
    bars = {f"{system} {way}": rate for system, ways in tried.items() for way, rate in ways.items()}
    bars |= found["texts_per_second"]
    axes.barh(list(bars), list(bars.values()))
    axes.set(xlabel="texts a second")
    figure.savefig(path)


def main(
    collection: Annotated[list[Path], typer.Option(help="A BEIR folder; may be given more than once.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder, hub id or .gguf file.")],
    texts: int = 600,
    rounds: int = 3,
    threads: int = 2,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compare all systems."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        systems = Systems(resolve(model, Workspace(Path(folder, "workspace"))), Path(folder, "model"))
        found = compare(systems, passages(collection, texts, systems.tokenizer), rounds)
    versions = {"torch": torch.__version__, "sentence-transformers": their_version}
    found |= {"model": Path(model).name, "threads": threads, "rounds": rounds, "versions": versions}
    print(json.dumps(found, indent=1))
    if as_json is not None:
        as_json.write_text(json.dumps(found, indent=1) + "\n")
        draw(found, as_json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
