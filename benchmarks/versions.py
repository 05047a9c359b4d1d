"""Pre-training and encoding on a CPU by this source tree and by another one, by turns in one run: is a change slower?

    git worktree add OTHER COMMIT
    python benchmarks/versions.py OTHER CORPUS [--rounds 5] [--threads 2] [--json FILE]

Each tree has a process of its own per task, which runs the tree's own copy of this script, with the same random weights
and the same texts of CORPUS (pretrain.py).
Every round both take a step on texts of their own round, each first by turns; ratios are the other's seconds over ours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).resolve().parent.parent
BATCH = {"mixed": 48, "full": 12, "encode": 96}
"""Texts of a step."""
BUDGET = 2048
"""Tokens of a forward."""
Step = Callable[[int], float]


def work(task: str, corpus: Path, rounds: int, threads: int) -> None:
    """In a process whose path has one tree: steps as they are asked for, a line each; numbers that must agree."""
    import torch

    torch.set_num_threads(threads)
    step = _encoding(corpus, rounds) if task == "encode" else _training(task, corpus, rounds)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found = step(int(line))
        print(json.dumps([time.perf_counter() - started, found]), flush=True)


def _training(kind: Any, corpus: Path, rounds: int) -> Step:
    """The loss of a batch whose gradients are taken, by the recipe ``paper``."""
    from pretrain_systems import model_of, ours
    from texts import Texts

    from llara_cli.cpu import keep_freed_memory
    from llara_cli.model.recipe import PAPER

    decoder, texts, size = model_of("30M"), Texts(corpus), BATCH[kind]
    keep_freed_memory()
    system, items = ours(decoder, texts, PAPER, BUDGET), texts.examples(kind, PAPER, size * (rounds + 1))

    def step(number: int) -> float:
        decoder.model.zero_grad(set_to_none=True)
        return system(items[number * size : (number + 1) * size])

    return step


def _encoding(corpus: Path, rounds: int) -> Step:
    """The sum of a shard's vectors."""
    from pretrain_systems import model_of
    from texts import Texts

    from llara_cli.model.encoder import Encoder, Sequencer
    from llara_cli.model.recipe import PAPER

    decoder, texts, size = model_of("30M"), Texts(corpus), BATCH["encode"]
    decoder.model.eval()
    encoder = Encoder(decoder, PAPER, Sequencer(texts.tokenizer, PAPER, {"passage": 512}))
    lines = [line for article in texts.articles for line in article.split("\n") if len(line.split()) > 4]

    def step(number: int) -> float:
        chosen = lines[number * size : (number + 1) * size]
        assert len(chosen) == size, f"the corpus is too short for {rounds} rounds"
        return float(encoder.encode(chosen, "passage").vectors.sum())

    return step


class Worker:
    """The process of a tree."""

    def __init__(self, tree: Path, task: str, corpus: Path, rounds: int, threads: int) -> None:
        path = os.pathsep.join(map(str, (tree, tree / "backends", tree / "benchmarks")))
        script = str(tree / "benchmarks" / "versions.py")
        command = [sys.executable, script, "--work", task, str(tree), str(corpus), f"--rounds={rounds}"]
        self._process = subprocess.Popen(
            [*command, f"--threads={threads}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        self._answer()

    def step(self, number: int) -> tuple[float, float]:
        """Seconds, and what was computed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        seconds, found = json.loads(self._answer())
        return seconds, found

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._process.args} has ended")
        return line

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def compare(task: str, other: Path, corpus: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Rounds of one task, after one that is not counted."""
    workers = {name: Worker(tree, task, corpus, rounds, threads) for name, tree in (("this", HERE), ("other", other))}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    apart = 0.0
    for number in range(rounds + 1):
        found = {}
        for name in list(workers)[:: 1 if number % 2 else -1]:
            taken, found[name] = workers[name].step(number)
            if number:
                seconds[name].append(taken)
        apart = max(apart, abs(found["this"] - found["other"]) / abs(found["other"]))
    for worker in workers.values():
        worker.close()
    ratios = [theirs / ours for theirs, ours in zip(seconds["other"], seconds["this"], strict=True)]
    told = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "difference": apart}
    return {"task": task, **told, "seconds": seconds}


def main(
    other: Path,
    corpus: Path,
    rounds: int = 5,
    threads: int = 2,
    tasks: Annotated[str, typer.Option(help="Comma-separated.")] = "mixed,full,encode",
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
    work_on: Annotated[str, typer.Option("--work", hidden=True)] = "",
) -> None:
    """Compare the trees on every task."""
    if work_on:
        return work(work_on, corpus, rounds, threads)
    rows = []
    for task in tasks.split(","):
        rows.append(compare(task, other.resolve(), corpus.resolve(), rounds, threads))
        print(json.dumps(rows[-1]), flush=True)
    if as_json is not None:
        as_json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
