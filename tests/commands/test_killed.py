"""``kill -9`` at any moment costs time only: the same command again ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
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
KILLS = int(os.environ.get("LLARA_TEST_KILLS", "1"))


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


def test_kills_at_random_moments_beside_a_dev_set_cost_time_only(
    train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Kills fall into steps, looks at the dev set and checkpoints, and between them."""
    arguments = ("finetune", train, "--model", tiny_model, "--backend", "full", "--batch-size", 2, "--negatives", 1,
                 "--max-steps", STEPS, "--save-every", 5, "--dev", beir, "--dev-every", 3, "--learning-rate", 3e-4,
                 "--name", "m", "--dtype", "fp32", "-q", "-w")  # fmt: skip
    command = [sys.executable, "-m", "llara_cli", *map(str, arguments)]
    whole, model = (tmp_path / run / "models/m" for run in ("whole", "killed"))
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    draw = random.Random(KILLS)
    for _ in range(KILLS):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        before, more = file_time(model / "history.jsonl"), draw.randrange(12)
        while process.poll() is None and file_time(model / "history.jsonl") == before:
            time.sleep(0.001)
        start = len(rows(model))  # it goes on from its last checkpoint
        while process.poll() is None and len(rows(model)) < start + more:
            time.sleep(0.001)
        time.sleep(draw.random() / 50)
        process.kill()
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    for name in ("model.safetensors", "manifest.json", "dev.jsonl", "history.jsonl"):
        assert (model / name).read_bytes() == (whole / name).read_bytes(), name
    results = [json.loads((folder / "run.json").read_text())["result"] for folder in (whole, model)]
    for part in ("steps", "texts", "tokens", "history", "dev"):
        assert results[0][part] == results[1][part]


def file_time(path: Path) -> int:
    """When a file was last written, 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0
