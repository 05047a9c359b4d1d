"""How much anonymous memory encoding takes for few and for many short texts: it should be the same.

    python benchmarks/encode_memory.py --model FOLDER [--counts 20000 --counts 200000] [--json FILE]

``llara encode`` is watched from outside, with a tiny model for preference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from memory import keep, peak

WORDS = ("sea", "boat", "fish", "rain", "harbour", "net", "storm", "light", "captain", "island", "wind", "wave")
RESULT = Path(__file__).with_suffix(".json")


def write_corpus(path: Path, count: int) -> None:
    """``count`` texts of 4 to 16 words."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(random.choice(WORDS, random.integers(4, 17)))
            file.write(json.dumps({"_id": f"document-{number}", "text": text}) + "\n")


def main(
    model: Annotated[Path, typer.Option(help="A checkpoint, tiny for preference.")],
    counts: Annotated[list[int] | None, typer.Option(help="Texts; twice. (20000 and 200000)")] = None,
    as_json: Annotated[Path, typer.Option("--json")] = RESULT,
) -> None:
    """Measure each size in turn."""
    found = {}
    for count in counts or (20_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "corpus.jsonl")
            write_corpus(corpus, count)
            command = [sys.executable, "-m", "llara_cli", "encode", str(corpus), "--model", str(model), "--quiet"]
            found[str(count)] = round(peak([*command, "--workspace", str(Path(folder, "workspace"))]), 1)
        print(f"{count:,} texts: {found[str(count)]:.0f} MB of anonymous memory")
    keep(as_json, found, {})


if __name__ == "__main__":
    typer.run(main)
