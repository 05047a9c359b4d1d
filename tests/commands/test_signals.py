"""Signals that end a run: exit codes, what is said, and what the same command finds afterwards."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from program import Llara

from llara_cli.pipelines import index
from llara_cli.retrieval.shards import Shards

KEPT = "interrupted; what is finished is kept, and the same command resumes it"


@pytest.fixture
def hang_up() -> Any:
    """The default action of SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_and_the_same_command_goes_on(
    llara: Llara, beir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, hang_up: None, number: int, code: int
) -> None:
    command = ("encode", beir / "corpus.jsonl", "--model", tiny_model, "--name", "e")
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "totals", lambda _: signal.raise_signal(number))
        outcome = llara(*command)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.splitlines()[-1] == KEPT
    assert "Traceback" not in outcome.err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert llara(*command).code == 0


def test_an_ignored_hang_up_stays_ignored(
    llara: Llara, beir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, hang_up: None
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    totals = Shards.totals

    def hung_up(shards: Shards) -> Any:
        signal.raise_signal(signal.SIGHUP)
        return totals(shards)

    monkeypatch.setattr(Shards, "totals", hung_up)
    assert llara("encode", beir / "corpus.jsonl", "--model", tiny_model).code == 0


def test_an_interrupted_index_promises_nothing(
    llara: Llara, beir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llara("encode", beir / "corpus.jsonl", "--model", tiny_model).code == 0
    monkeypatch.setattr(index, "finish", lambda *_: signal.raise_signal(signal.SIGTERM))
    outcome = llara("index")
    assert outcome.code == 143
    assert outcome.err.splitlines()[-1] == "interrupted"
