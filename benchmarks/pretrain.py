"""Texts a second of pre-training, beside the authors' way and two padded passes, by turns in one run, on a CPU.

    python benchmarks/pretrain.py CORPUS [--rounds 5] [--threads 2] [--json FILE]

CORPUS: a folder of .jsonl[.gz] articles ({"text": ...}); a 32,000-token vocabulary is trained on it. Models have the
shape of a 30 M Llama and of SmolLM2-135M, random weights. Every system tries its micro-batch sizes first and keeps the
fastest; the authors' way is also measured at eight texts. Each round takes a batch of its own, and begins with another
system than the one before it. Ours run in one process and the rivals in another, whose allocators differ as they do
where people run them. The JSON file keeps every second that was measured.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from pretrain_systems import ALL_AT_ONCE, AT_ONCE, SHAPES, Side, System, mine, model_of, ours, systems
from rivals import Authors
from texts import Kind, Texts

from llara_cli.cpu import give_back_memory, keep_freed_memory, linear, resident_memory
from llara_cli.model.decoder import Decoder
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.tokenizer import PromptIds
from llara_cli.training.preparation import CPU_TOKENS
from llara_cli.training.pretext import Example
from llara_cli.training.probe import peak_memory

BATCH = {"mixed": 48, "full": 12}
"""Texts of an optimizer batch."""
TRIAL = {"mixed": 48, "full": 8}
"""Texts that a setting is tried on: of mixed ones a whole batch, as the lengths in a part may suit another setting."""
WARM = 8
"""Texts of a step that is not timed, before a system's settings are tried."""
CLOSE = 0.5
"""Share of the fastest setting's rate from which a setting is tried once more, in turn; its fastest counts."""
SAME = {"speed": ("model", "texts", "processor", "threads", "rivals_keep_memory"), "memory": ("model", "processor")}
"""By what a row of the JSON file's tables is known."""
RIVALS = {"authors": RELEASED, ALL_AT_ONCE: RELEASED, "two passes": PAPER, "two passes, by length": PAPER}
"""The rivals, and the recipe of ours that each stands beside."""


def processor() -> str:
    """What this machine calls its processor, and the instructions that PyTorch uses of it."""
    described = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", described.read_text()) if described.is_file() else None
    return f"{named[1] if named else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def matmul_peak() -> float:
    """FLOP/s of a large square product, by whichever library multiplies it fastest."""
    left, best = torch.randn(1536, 1536), 0.0
    for multiply in (torch.matmul, linear) * 8:
        started = time.perf_counter()
        multiply(left, left)
        best = max(best, 2 * 1536**3 / (time.perf_counter() - started))
    return best


def compare(
    shape: str, kind: Kind, texts: Texts, rounds: int, threads: int, *, trial: int, rivals_keep_memory: bool
) -> dict[str, Any]:
    """One model, one kind of text: each system's best setting, its median rate, its loss."""
    decoder, count = model_of(shape), BATCH[kind] * (rounds + 1)
    ways = {name: list(settings) for name, (_, settings) in systems(decoder, texts).items()}
    own, theirs = (Side(shape, kind, texts, count, threads, keeps=keeps) for keeps in (True, rivals_keep_memory))
    sides = {name: theirs if name in RIVALS else own for name in ways}
    tried = {name: tries(sides[name], name, found, trial) for name, found in ways.items() if len(found) > 1}
    fastest = {name: max(rates, key=rates.__getitem__) for name, rates in tried.items()}
    chosen = {name: fastest.get(name, found[0]) for name, found in ways.items()}
    seconds, losses, peaks = in_turns(sides, chosen, BATCH[kind], rounds)
    for side in (own, theirs):
        side.close()
    batches = {recipe.name: texts.examples(kind, recipe, count)[BATCH[kind] :] for recipe in (PAPER, RELEASED)}
    found = report(decoder, texts, batches, BATCH[kind], seconds, losses, max(peaks))
    kept = {
        "trial_texts": trial,
        "seconds": seconds,
        "peak_gflops": [peak / 1e9 for peak in peaks],
        "tried_texts_per_second": tried,
    }
    return {"model": shape, "texts": kind} | found | {"chosen": chosen} | kept


def tries(side: Side, name: str, ways: Sequence[str], count: int) -> dict[str, float]:
    """Texts a second of each setting at its fastest, on the first ``count`` texts."""
    side.step(name, ways[0], slice(WARM))
    rates: dict[str, float] = {}

    def try_out(way: str) -> None:
        rates[way] = max(rates.get(way, 0.0), count / side.step(name, way, slice(count))[0])
        print(f"  tried {name}, {way}: {rates[way]:.2f} texts/s", flush=True)

    for way in ways:
        try_out(way)
    for way in [way for way in ways if way == ways[0] or rates[way] >= CLOSE * max(rates.values())]:
        try_out(way)
    return rates


def in_turns(
    sides: Mapping[str, Side], chosen: Mapping[str, str], size: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float]]:
    """Seconds and losses by system and round, the matmul peak by round; the first ``size`` texts are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    peaks: list[float] = []
    names = list(sides)
    for number in range(rounds):
        part = slice((number + 1) * size, (number + 2) * size)
        peaks.append(matmul_peak())
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken, loss = sides[name].step(name, chosen[name], part)
            print(f"  round {number + 1}: {name}, {chosen[name]}: {taken:.2f} s", flush=True)
            seconds[name].append(taken)
            losses[name].append(loss)
    return seconds, losses, peaks


def report(
    decoder: Decoder, texts: Texts, batches: dict[str, list[Example]], batch: int,
    seconds: dict[str, list[float]], losses: dict[str, list[float]], peak: float,
) -> dict[str, Any]:  # fmt: skip
    """Rates, ratios of the same round, agreement of losses, share of the matmul peak; ``batch`` texts a step."""
    rates = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
    at_peak = {  # texts a second
        recipe.name: peak / flops(decoder, texts.prompts(recipe), recipe, batches[recipe.name])
        for recipe in (PAPER, RELEASED)
    }
    beside = {rival: mine(recipe) for rival, recipe in RIVALS.items()}
    return {
        "mean_tokens": float(np.mean([len(example.text) for example in batches["paper"]])),
        "texts_per_second": rates,
        "ratio": {rival: ratio(seconds[rival], seconds[own]) for rival, own in beside.items()},
        "ratio_at_peak": {rival: at_peak[recipe.name] / rates[rival] for rival, recipe in RIVALS.items()},
        "loss_difference": {rival: apart(losses[rival], losses[own]) for rival, own in beside.items()},
        "share_of_matmul_peak": {
            recipe.name: rates[mine(recipe)] / at_peak[recipe.name] for recipe in (PAPER, RELEASED)
        },
        "matmul_gflops": peak / 1e9,
    }


def ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """How many times faster ours was, the median over rounds."""
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


def apart(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """The largest relative difference of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(theirs, mine, strict=True))


def flops(decoder: Decoder, prompts: PromptIds, recipe: Recipe, examples: Sequence[Example]) -> float:
    """FLOPs that a text needs, attention not counted: 6 a weight and token, 6 a weight and row of logits.

    Whoever takes these losses of each text on its own multiplies as much: the ratio to a rival is bounded by it.
    """
    text = sum(len(example.text) for example in examples) / len(examples)
    weights = sum(m.weight.numel() for m in decoder.body.modules() if isinstance(m, torch.nn.Linear))
    logits = 2 * prompts.slots + (text if recipe.language_model_loss else 0)
    return float(6 * (weights * (text + prompts.overhead()) + logits * decoder.vocabulary * decoder.dim))


def grown(shape: str, texts: Texts, recipe: Recipe, way: str, examples: list[Example], answer: Any) -> None:
    """In a process of its own: bytes of resident memory that one step adds to the model's, gradients included."""
    decoder = model_of(shape)
    if way != "authors":
        keep_freed_memory()
    prompts = texts.prompts(recipe)
    if way == "authors":
        system: System = Authors(decoder, prompts, len(examples)).backward
    else:
        system = ours(decoder, texts, recipe, int(way))
    give_back_memory()
    before = resident_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    system(examples)
    answer.send(peak_memory(torch.device("cpu")) - before)


def memory(shape: str, texts: Texts) -> dict[str, Any]:
    """Peak of one step on the same batch: the authors' one forward, ours in our forwards, ours in one forward."""
    examples = texts.examples("full", RELEASED, AT_ONCE)
    found = {}
    for name, way in {
        "authors": "authors",
        "llara": str(CPU_TOKENS),
        "llara, one forward": str(AT_ONCE * 512),
    }.items():
        receiver, sender = multiprocessing.get_context("fork").Pipe(False)
        child = multiprocessing.get_context("fork").Process(
            target=grown, args=(shape, texts, RELEASED, way, examples, sender)
        )
        child.start()
        found[name] = receiver.recv() / 2**20
        child.join()
    ratio_of_peaks = found["llara"] / found["authors"]
    return {"model": shape, "texts": AT_ONCE, "mib": found, "ratio": ratio_of_peaks, "processor": processor()}


def keep(path: Path, table: str, row: dict[str, Any]) -> None:
    """Put a row into a table of the JSON file: ``speed`` or ``memory``; those that were measured otherwise stay."""
    known = json.loads(path.read_text()) if path.exists() else {"speed": [], "memory": []}
    others = [old for old in known[table] if any(old.get(key) != row.get(key) for key in SAME[table])]
    shapes, kinds = list(SHAPES), list(BATCH)

    def place(row: dict[str, Any]) -> tuple[str, int, int]:
        return (
            row.get("processor", ""),
            shapes.index(row["model"]),
            kinds.index(row["texts"]) if table == "speed" else 0,
        )

    known[table] = sorted([*others, row], key=place)
    path.write_text(json.dumps(known, indent=1) + "\n")


def main(
    corpus: Path,
    rounds: int = 5,
    threads: int = 2,
    shapes: Annotated[str, typer.Option(help="Comma-separated.")] = "30M,135M",
    kinds: Annotated[str, typer.Option(help="Comma-separated; none: memory alone.")] = "mixed,full",
    trial_texts: Annotated[int | None, typer.Option(help="Texts that a setting is tried on.")] = None,
    rivals_keep_memory: Annotated[bool, typer.Option(help="Set the rivals' allocator as ours is set.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compare all systems on every model and kind of text."""
    texts = Texts(corpus)
    torch.set_num_threads(1)  # a process that has used OpenMP cannot fork
    settings = {"threads": threads, "processor": processor(), "rivals_keep_memory": rivals_keep_memory}

    def note(table: str, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if as_json is not None:
            keep(as_json, table, row)

    for shape in shapes.split(","):
        note("memory", memory(shape, texts))
    torch.set_num_threads(threads)
    for shape, kind in itertools.product(shapes.split(","), filter(None, kinds.split(","))):
        found = compare(
            shape, cast(Kind, kind), texts, rounds, threads,
            trial=trial_texts or TRIAL[kind], rivals_keep_memory=rivals_keep_memory,
        )  # fmt: skip
        note("speed", found | settings)


if __name__ == "__main__":
    typer.run(main)
