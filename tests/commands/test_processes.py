"""What only a real process shows: start-up without heavy libraries, Ctrl-C, broken pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import Llara, start, write_jsonl
from tiny import TEXTS

HEAVY = ("torch", "transformers", "numpy", "datasets", "faiss", "peft", "pyarrow", "hnswlib", "scipy", "ir_datasets",
         "matplotlib")  # fmt: skip
VERBS = ("pretrain", "finetune", "encode", "index", "search", "evaluate", "compare", "status", "clean", "doctor",
         "backends")  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["pretrain", "x", "--modle", "y"]]
)
def test_help_and_wrong_flags_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from llara_cli.app import run; code = run(sys.argv[1:]);"
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; print('heavy:', heavy); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert done.returncode == (2 if "--modle" in arguments else 0)
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "wiki.jsonl", [{"text": " ".join(TEXTS)}])
    command = ("pretrain", corpus, "--model", tiny_model, "--max-length", 60, "--batch-size", 2, "--max-steps", 4000,
               "--name", "long", "--json", "-w", tmp_path / "ws")  # fmt: skip
    process = start(*command)
    history = tmp_path / "ws/models/long/history.jsonl"
    deadline = time.monotonic() + 60
    while not (history.exists() and history.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("interrupted")
    done = history.read_text().count("\n")
    saved = json.loads((tmp_path / "ws/models/long/checkpoint/step.json").read_text())
    assert saved["step"] == done
    process = start(*command)
    while history.read_text().count("\n") <= done and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > done


def stopped_by_sigterm(model: Path, workspace: Path, processes: int) -> tuple[int, str, list[object]]:
    """Exit code and stderr of a pre-training run that gets SIGTERM after a few steps, and the arguments of the run."""
    corpus = write_jsonl(workspace.with_name("wiki.jsonl"), [{"text": " ".join(TEXTS)}])
    command = ["pretrain", corpus, "--model", model, "--max-length", 60, "--batch-size", 2, "--max-steps", 150,
               "--dtype", "fp32", "--name", "m", "--json"]  # fmt: skip
    process = start(*command, "-w", workspace, processes=processes)
    history = workspace / "models/m/history.jsonl"
    while process.poll() is None and not (history.exists() and history.read_text().count("\n") > 3):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert [line.startswith("interrupted") for line in err.splitlines()].count(True) == 1, err
    saved = json.loads((workspace / "models/m/checkpoint/step.json").read_text())
    assert saved == {"step": history.read_text().count("\n")}
    return process.returncode, err, command


def test_sigterm_keeps_what_is_done_and_the_same_command_goes_on(
    llara: Llara, tiny_model: Path, tmp_path: Path
) -> None:
    code, err, command = stopped_by_sigterm(tiny_model, tmp_path / "ws", processes=1)
    assert code == 143
    assert err.splitlines()[-1].startswith("interrupted")
    again = llara(*command)
    assert again.code == 0
    whole = llara(*command, workspace=tmp_path / "whole")
    assert again.json["history"] == whole.json["history"]
    weights = [(tmp_path / run / "models/m/model.safetensors").read_bytes() for run in ("whole", "ws")]
    assert weights[0] == weights[1]


def test_sigterm_stops_all_processes_at_the_same_step(tiny_model: Path, tmp_path: Path) -> None:
    code, _, _ = stopped_by_sigterm(tiny_model, tmp_path / "ws", processes=2)
    assert code != 0


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    process = start("backends", "-w", tmp_path / "ws")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 1)


def test_interactive_search_answers_line_by_line(tiny_model: Path, tmp_path: Path) -> None:
    documents = write_jsonl(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    program, workspace = [sys.executable, "-m", "llara_cli"], ["-w", str(tmp_path / "ws"), "-q"]
    for command in (["encode", str(documents), "--model", str(tiny_model)], ["index"]):
        subprocess.run([*program, *command, *workspace], check=True, capture_output=True)
    command = [*program, "search", "--interactive", "--json", *workspace]
    said = b"bees\n\n\xff\xfe\nthe sea"
    done = subprocess.run(command, input=said, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert (done.returncode, b"the query is not UTF-8" in done.stderr) == (0, True), done.stderr
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["bees", "the sea"]
