"""How much anonymous memory pre-training takes on a small and on a large corpus: it should be the same.

    python benchmarks/memory.py --corpus FOLDER --model FOLDER [--sizes 100 --sizes 1000] [--json FILE]

Articles of ``FOLDER``'s ``.jsonl.gz`` files are repeated up to each size in MB, and ``llara pretrain`` is watched from
outside: the whole corpus is tokenized, as ``--epochs`` asks for, and a few steps are taken. Files that are mapped into
memory do not count: the system takes their pages back when it likes.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

SECONDS = 0.05
"""Between two looks at the process."""
RESULT = Path(__file__).with_suffix(".json")
RUN = ("--epochs", "0.00001", "--batch-size", "8", "--max-length", "128", "--quiet")
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


def lines(corpus: Path) -> Iterator[bytes]:
    """The lines of all parts, over and over; each round's texts begin with its number, so that no two are the same."""
    parts = sorted(corpus.glob("*.jsonl.gz"))
    if not parts:
        raise typer.BadParameter(f"{corpus}: no .jsonl.gz in this folder")
    for number in count(1):
        for part in parts:
            with gzip.open(part) as file:
                for line in file:
                    text = json.loads(line)["text"]
                    yield json.dumps({"text": f"{number}. {text}"}, ensure_ascii=False).encode() + b"\n"


def write_corpus(corpus: Path, path: Path, size: int) -> None:
    """Articles of ``size`` bytes at least."""
    with path.open("wb") as file:
        for line in lines(corpus):
            if file.tell() >= size:
                return
            file.write(line)


def peak(command: list[str]) -> float:
    """Most anonymous memory of a command that must succeed, in MB."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            # a process that has just ended has no such line
            most = max([most, *map(int, _ANONYMOUS.findall(status.read_text()))])
            time.sleep(SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most / 1000


def keep(path: Path, found: dict[str, float], how: dict[str, str]) -> None:
    """Write down the memory (MB) of each size, the smallest first, and the last's share of the first's."""
    ratio = round(list(found.values())[-1] / next(iter(found.values())), 3)
    print(f"ratio {ratio}")
    path.write_text(json.dumps({"rss_anon_mb": found, "ratio": ratio, **how}, indent=1) + "\n")


def main(
    corpus: Annotated[Path, typer.Option(help="A folder of .jsonl.gz files, each line with a text.")],
    model: Annotated[Path, typer.Option(help="A checkpoint, tiny for preference.")],
    sizes: Annotated[list[int] | None, typer.Option(help="MB of text; twice: small and large. (100 and 1000)")] = None,
    as_json: Annotated[Path, typer.Option("--json")] = RESULT,
) -> None:
    """Measure each size in turn."""
    found = {}
    for size in sizes or (100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            text, workspace = Path(folder, "corpus.jsonl"), Path(folder, "workspace")
            write_corpus(corpus, text, size * 1_000_000)
            command = [sys.executable, "-m", "llara_cli", "pretrain", str(text), "--model", str(model), *RUN]
            found[str(size)] = round(peak([*command, "--workspace", str(workspace)]), 1)
        print(f"{size} MB of text: {found[str(size)]:.0f} MB of anonymous memory")
    keep(as_json, found, {"run": " ".join(RUN)})


if __name__ == "__main__":
    typer.run(main)
