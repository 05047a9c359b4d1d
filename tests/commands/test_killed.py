"""``kill -9`` at any moment costs time only: the same command again ends with the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from program import write_jsonl
from tiny import TEXTS

STEPS = 60


@pytest.fixture(scope="module")
def command(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pre-training run of many small steps; the workspace comes last."""
    documents = [{"text": " ".join(TEXTS[number:] + TEXTS[:number])} for number in range(5)]
    corpus = write_jsonl(tmp_path_factory.mktemp("corpus") / "wiki.jsonl", documents)
    arguments = ("pretrain", corpus, "--model", tiny_model, "--max-length", 60, "--batch-size", 4, "--max-steps", STEPS,
                 "--save-every", 4, "--name", "m", "--dtype", "fp32", "-q", "-w")  # fmt: skip
    return [sys.executable, "-m", "llara_cli", *map(str, arguments)]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a run that nobody interrupted."""
    workspace = tmp_path_factory.mktemp("whole")
    subprocess.run([*command, str(workspace)], check=True, capture_output=True)
    return workspace / "models/m"


def rows(model: Path) -> list[dict[str, Any]]:
    """The history so far; a line that is being written does not count."""
    path = model / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run_until(command: list[str], model: Path, steps: int) -> None:
    """Start the command and kill it when its history has so many rows, unless it ends first."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(rows(model)) < steps:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_run_ends_as_an_uninterrupted_one_does(command: list[str], whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "models/m"
    seen = []
    for steps in (7, 23, 50):
        run_until([*command, str(tmp_path)], model, steps)
        seen.append(len(rows(model)))
        assert not (model / "manifest.json").exists()
    assert seen == sorted(seen)
    assert (model / "checkpoint/step.json").exists()  # later runs did go on from somewhere
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True)
    for name in ("model.safetensors", "manifest.json"):
        assert (model / name).read_bytes() == (whole / name).read_bytes()
    assert rows(model) == rows(whole)
    assert [row["step"] for row in rows(model)] == list(range(1, STEPS + 1))
    assert not list(model.glob("*checkpoint*"))


def test_half_a_checkpoint_is_never_taken_up(command: list[str], whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "models/m"
    run_until([*command, str(tmp_path)], model, 20)
    torn = model / ".checkpoint.part"
    torn.mkdir(exist_ok=True)
    (torn / "state.safetensors").write_bytes(b"half of a file")
    (torn / "step.json").write_text('{"step": 55}')
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True)
    assert (model / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
