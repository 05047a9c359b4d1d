"""A run that goes on: the best weights on a dev set, damaged files, full disks, trackers, signals."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from program import Llara, tree
from safetensors.torch import load_file, save_file

from llara_cli.app import termination_as_interrupt
from llara_cli.core.errors import LlaraError, Terminated
from llara_cli.training import interrupts
from llara_cli.training.engine import Engine
from llara_cli.training.history import History
from llara_cli.training.interrupts import deferred_interrupt
from llara_cli.training.trainable_model import TrainableModel

FINETUNE = ("--backend", "full", "--batch-size", 2, "--negatives", 1, "--learning-rate", 3e-4, "--name", "m", "--json")


def stop_before_row(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the next run in the middle of a step, where nothing of it is kept."""
    add = History.add

    def stop(history: History, row: dict[str, Any]) -> str:
        if row["step"] == step:
            raise KeyboardInterrupt
        return add(history, row)

    monkeypatch.setattr(History, "add", stop)


def kill(*_: object) -> NoReturn:
    """In place of a method: the run ends there."""
    raise KeyboardInterrupt


def test_the_best_weights_are_those_of_the_best_score_after_a_kill(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a better step, found after the last checkpoint, must not outlive what is known of that step."""
    flags = ("--model", tiny_model, *FINETUNE, "--dev", beir, "--dev-every", 1, "--max-steps", 5, "--save-every", 3)
    whole = llara("finetune", train, *flags, workspace=tmp_path / "whole").json["dev"]
    assert whole["step"] == 4
    with monkeypatch.context() as patch:
        stop_before_row(patch, 5)
        assert llara("finetune", train, *flags).code == 130
    state = tmp_path / "ws/models/m/checkpoint/state.safetensors"
    saved = load_file(state)
    torch.manual_seed(0)  # from here on the run goes another way, as it may on a GPU, and never gets better again
    save_file({n: torch.randn_like(t) if n.startswith("weight/") else t for n, t in saved.items()}, state)
    dev = llara("finetune", train, *flags).json["dev"]
    assert dev["scores"][:3] == whole["scores"][:3]
    assert dev["step"] == 1
    found = llara("evaluate", beir, "--model", "m", "--max-length", 160, "--query-length", 64, "--json").json
    assert found["datasets"]["small"]["nDCG@10"] == pytest.approx(dev["best"], abs=1e-9)


def half(file: Path) -> None:
    """Keep the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of a file, or drop them."""
    save_file({name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}, file)


NORM = "weight/model.norm.weight"
DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "state cut short": ("checkpoint/state.safetensors", half),
    "state empty": ("checkpoint/state.safetensors", lambda file: file.write_bytes(b"")),
    "state missing": ("checkpoint/state.safetensors", Path.unlink),
    "a tensor left out": ("checkpoint/state.safetensors", lambda file: change(file, {NORM: None})),
    "a tensor too many": ("checkpoint/state.safetensors", lambda file: change(file, {"weight/x": torch.ones(2)})),
    "another shape": ("checkpoint/state.safetensors", lambda file: change(file, {NORM: torch.ones(31)})),
    "another dtype": ("checkpoint/state.safetensors", lambda file: change(file, {NORM: torch.ones(32).half()})),
    "step cut short": ("checkpoint/step.json", half),
    "step missing": ("checkpoint/step.json", Path.unlink),
    "step not said": ("checkpoint/step.json", lambda file: file.write_text('{"dev": []}')),
    "step no number": ("checkpoint/step.json", lambda file: file.write_text('{"step": "4", "dev": []}')),
    "scores not said": ("checkpoint/step.json", lambda file: file.write_text('{"step": 4}')),
    "best cut short": ("best/4.safetensors", half),
    "best missing": ("best/4.safetensors", Path.unlink),
    "history cut short": ("history.jsonl", half),
    "history not text": ("history.jsonl", lambda file: file.write_bytes(b"\xff\xfe" * 90)),
    "history missing": ("history.jsonl", Path.unlink),
}


def test_damaged_files_are_named_with_the_way_out(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", tiny_model, *FINETUNE, "--dev", beir, "--dev-every", 2, "--max-steps", 6, "--save-every", 4)
    with monkeypatch.context() as patch:
        stop_before_row(patch, 5)
        assert llara("finetune", train, *flags).code == 130
    before = tmp_path / "ws/models/m"
    assert json.loads((before / "checkpoint/step.json").read_text())["step"] == 4
    for what, (name, damage) in DAMAGE.items():
        workspace = tmp_path / what
        shutil.copytree(tmp_path / "ws", workspace)
        folder = workspace / "models/m"
        damage(folder / name)
        done = llara("finetune", train, *flags, workspace=workspace)
        assert (done.code, done.out) == (1, ""), what
        problem = "is missing; " if "missing" in what else "is damaged: "
        assert done.error.startswith(f"error: {folder / name} {problem}"), what
        assert f"delete the folder {folder / 'checkpoint'} to train from the beginning" in done.error, what
        assert "Traceback" not in done.err, what
        assert done.err.splitlines()[-1] == done.error, what
    whole = llara("finetune", train, *flags, workspace=tmp_path / "whole").json
    shutil.rmtree(folder / "checkpoint")  # the last one's
    again = llara("finetune", train, *flags, workspace=workspace).json
    assert (again["history"], again["dev"]) == (whole["history"], whole["dev"])


@pytest.mark.parametrize("backend", ["lora", "qlora"])
def test_a_damaged_checkpoint_of_adapters_is_named_too(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ("--model", tiny_model, "--backend", backend, "--optimizer", "paged-adamw-8bit", "--lora-rank", 4,
             "--max-length", 60, "--batch-size", 4, "--max-steps", 3, "--save-every", 1, "--name", "m")  # fmt: skip
    with monkeypatch.context() as patch:
        stop_before_row(patch, 3)
        assert llara("pretrain", corpus, *flags).code == 130
    state = tmp_path / "ws/models/m/checkpoint/state.safetensors"
    whole = state.read_bytes()
    half(state)
    done = llara("pretrain", corpus, *flags)
    assert done.code == 1
    assert done.error.startswith(f"error: {state} is damaged: ")
    state.write_bytes(whole)
    assert llara("pretrain", corpus, *flags).code == 0


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_time_only(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", tiny_model, *FINETUNE, "--dev", beir, "--dev-every", 2, "--max-steps", 4, "--save-every", 2)
    whole = llara("finetune", train, *flags, workspace=tmp_path / "whole").json
    folder = tmp_path / "ws/models/m"
    with files_at_most(10_000):
        done = llara("finetune", train, *flags)
    assert done.code == 1
    assert done.error.startswith(f"error: {folder / 'best/2.safetensors'}: cannot be saved (")
    assert "there is no checkpoint yet" in done.error
    with monkeypatch.context() as patch:
        stop_before_row(patch, 3)
        assert llara("finetune", train, *flags).code == 130
    size = (folder / "best/2.safetensors").stat().st_size
    before = tree(folder / "checkpoint")
    with files_at_most(size + 10_000):
        done = llara("finetune", train, *flags)
    assert done.code == 1
    assert done.error.startswith(f"error: {folder / 'checkpoint'}: cannot be saved (")
    assert "a checkpoint of step 2 is kept" in done.error
    assert tree(folder / "checkpoint") == before
    assert not list(folder.rglob(".*"))
    again = llara("finetune", train, *flags).json
    assert (again["history"], again["dev"]) == (whole["history"], whole["dev"])
    weights = [(tmp_path / run / "models/m/model.safetensors").read_bytes() for run in ("whole", "ws")]
    assert weights[0] == weights[1]


def test_a_run_that_patience_ended_ends_so_again_after_a_kill(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill falls when the training is done and the model not yet saved."""
    flags = ("--model", tiny_model, *FINETUNE, "--dev", beir, "--dev-every", 1, "--patience", 1, "--max-steps", 9)
    for save_every in (2, 100):
        workspaces = [tmp_path / f"{name}-{save_every}" for name in ("whole", "killed")]
        command = ("finetune", train, *flags, "--save-every", save_every)
        whole = llara(*command, workspace=workspaces[0]).json
        assert whole["steps"] == 2
        with monkeypatch.context() as patch:
            patch.setattr(TrainableModel, "save", kill)
            assert llara(*command, workspace=workspaces[1]).code == 130
        again = llara(*command, workspace=workspaces[1]).json
        for part in ("steps", "texts", "tokens", "history", "dev"):
            assert again[part] == whole[part]
        weights = [(workspace / "models/m/model.safetensors").read_bytes() for workspace in workspaces]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_a_step_finishes_and_keeps_it(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    hang_up: None, number: int, code: int,
) -> None:  # fmt: skip
    flags = ("--model", tiny_model, "--max-length", 60, "--batch-size", 4, "--max-steps", 5, "--name", "m", "--json")
    add = History.add

    def signalled(history: History, row: dict[str, Any]) -> str:
        if row["step"] == 3:
            signal.raise_signal(number)
        return add(history, row)

    with monkeypatch.context() as patch:
        patch.setattr(History, "add", signalled)
        done = llara("pretrain", corpus, *flags)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1].startswith("interrupted")
    folder = tmp_path / "ws/models/m"
    assert json.loads((folder / "checkpoint/step.json").read_text()) == {"step": 3}
    assert len((folder / "history.jsonl").read_text().splitlines()) == 3
    again = llara("pretrain", corpus, *flags)
    whole = llara("pretrain", corpus, *flags, workspace=tmp_path / "whole")
    assert again.json["history"] == whole.json["history"]


@pytest.fixture
def hang_up() -> Iterator[None]:
    """The default action of SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once_but_for_an_echo_of_the_first(
    hang_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with termination_as_interrupt(), deferred_interrupt(Engine()) as interrupted:
        assert interrupted() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        stop = interrupted()
        assert isinstance(stop, Terminated)
        assert stop.signal == signal.SIGTERM
        monkeypatch.setattr(interrupts, "ECHO_SECONDS", 0)
        with pytest.raises(Terminated) as second:
            signal.raise_signal(signal.SIGHUP)
        assert second.value.signal == signal.SIGHUP


def test_a_signal_during_the_last_checkpoint_stops_the_run(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", tiny_model, "--max-length", 60, "--batch-size", 4, "--max-steps", 2, "--save-every", 2,
             "--name", "m", "--json")  # fmt: skip
    sync = History.sync

    def signalled(history: History) -> None:
        signal.raise_signal(signal.SIGTERM)
        sync(history)

    with monkeypatch.context() as patch:
        patch.setattr(History, "sync", signalled)
        done = llara("pretrain", corpus, *flags)
    assert (done.code, done.out) == (143, "")
    assert json.loads((tmp_path / "ws/models/m/checkpoint/step.json").read_text()) == {"step": 2}
    again = llara("pretrain", corpus, *flags)
    whole = llara("pretrain", corpus, *flags, workspace=tmp_path / "whole")
    assert again.json["history"] == whole.json["history"]


def test_a_signal_after_the_last_question_is_delivered_once() -> None:
    def late() -> None:
        with deferred_interrupt(Engine()) as interrupted:
            assert interrupted() is None
            signal.raise_signal(signal.SIGTERM)

    def failing() -> None:
        with deferred_interrupt(Engine()):
            signal.raise_signal(signal.SIGINT)
            raise LlaraError("the step failed")

    with termination_as_interrupt():
        with pytest.raises(Terminated) as found:
            late()
        assert found.value.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            failing()
        with deferred_interrupt(Engine()) as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert interrupted() is not None


def test_an_ignored_signal_stays_ignored(hang_up: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with deferred_interrupt(Engine()) as interrupted:
        signal.raise_signal(signal.SIGHUP)
        assert interrupted() is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_tensorboard_shows_each_step_once(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ("--model", tiny_model, "--max-length", 60, "--batch-size", 4, "--max-steps", 6, "--save-every", 2,
             "--name", "m", "--track", "tensorboard", "--json")  # fmt: skip

    def logged() -> list[tuple[int, float]]:
        events = event_accumulator.EventAccumulator(str(tmp_path / "ws/tracking/m/llara"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    with monkeypatch.context() as patch:
        stop_before_row(patch, 6)
        assert llara("pretrain", corpus, *flags).code == 130
    assert [step for step, _ in logged()] == [1, 2, 3, 4, 5]
    for more in ((), ("--restart", "--learning-rate", 1e-3)):  # from step 4 on, and from the beginning
        history = llara("pretrain", corpus, *flags, *more).json["history"]
        assert logged() == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in history]
