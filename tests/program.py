"""The program in this process, and a small collection to run it on: the fixtures of tests/commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import TEXTS

from llara_cli import app


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.out, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> str:
        """The one line that begins with ``error:``."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


Llara = Callable[..., Outcome]


@pytest.fixture
def llara(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Llara:
    """Run ``llara ARGUMENTS`` on a workspace of the test's own."""

    def call(*arguments: object, workspace: Path = tmp_path / "ws") -> Outcome:
        capsys.readouterr()
        code = app.run([*map(str, arguments), "-w", str(workspace)])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


LAUNCHER = ["-m", "torch.distributed.run", "--standalone"]


def start(*arguments: object, processes: int = 1, launched: bool = False) -> subprocess.Popen[str]:
    """``llara`` in so many processes of its own (gloo); ``launched``: by torchrun, though it be one."""
    launcher = [*LAUNCHER, f"--nproc_per_node={processes}"] if processes > 1 or launched else []
    command = [sys.executable, *launcher, "-m", "llara_cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Plain text to pre-train on: documents of several sentences."""
    rows = [{"title": f"Part {i}", "text": " ".join(TEXTS[i:] + TEXTS[:i])} for i in range(5)]
    return write_jsonl(tmp_path / "wiki.jsonl", rows)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Queries with a positive and two negatives."""
    rows = [
        {"query": f"about {text[:12]}", "pos": [text], "neg": [t for t in TEXTS if t != text][:2]} for text in TEXTS
    ]
    return write_jsonl(tmp_path / "train.jsonl", rows)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A judged collection in BEIR layout."""
    folder = tmp_path / "sets" / "small"
    write_jsonl(
        folder / "corpus.jsonl", [{"_id": f"d{i}", "title": f"T{i}", "text": text} for i, text in enumerate(TEXTS)]
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text[:20]} for i, text in enumerate(TEXTS)])
    (folder / "qrels").mkdir()
    lines = "".join(f"q{i}\td{i}\t1\n" for i in range(4))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
