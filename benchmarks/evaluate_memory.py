"""How much anonymous memory an evaluation takes on a small and on a large collection: it should be the same.

    python benchmarks/evaluate_memory.py --model FOLDER [--counts 200000 --counts 1000000] [--json FILE]

``llara evaluate`` is watched from outside, with a tiny model for preference: short texts, 200 judged queries, an exact
search, the run and its figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from encode_memory import WORDS, write_corpus
from memory import keep, peak

QUERIES, JUDGED = 200, 5
RESULT = Path(__file__).with_suffix(".json")


def write_collection(folder: Path, count: int) -> None:
    """``count`` texts of 4 to 16 words, and queries with a few judgments each, in BEIR layout."""
    random = np.random.default_rng(1)
    (folder / "qrels").mkdir(parents=True)
    write_corpus(folder / "corpus.jsonl", count)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels" / "test.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(QUERIES):
            text = " ".join(random.choice(WORDS, 3))
            queries.write(json.dumps({"_id": f"query-{number}", "text": text}) + "\n")
            for row in random.choice(count, JUDGED, replace=False):
                qrels.write(f"query-{number}\tdocument-{row}\t1\n")


def main(
    model: Annotated[str, typer.Option(help="A checkpoint, tiny for preference; or bm25.")],
    counts: Annotated[list[int] | None, typer.Option(help="Texts; twice. (200000 and 1000000)")] = None,
    as_json: Annotated[Path, typer.Option("--json")] = RESULT,
) -> None:
    """Measure each size in turn."""
    found = {}
    for count in counts or (200_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            collection = Path(folder, "collection")
            write_collection(collection, count)
            command = [sys.executable, "-m", "llara_cli", "evaluate", str(collection), "--model", model, "--quiet"]
            found[str(count)] = round(peak([*command, "--workspace", str(Path(folder, "workspace"))]), 1)
        print(f"{count:,} texts: {found[str(count)]:.0f} MB of anonymous memory")
    keep(as_json, found, {"queries": str(QUERIES)})


if __name__ == "__main__":
    typer.run(main)
