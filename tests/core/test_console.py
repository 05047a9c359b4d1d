"""Bars and status lines on a terminal."""

from __future__ import annotations

import io
import re
import time
from contextlib import redirect_stderr

import pytest

from llara_cli.core.console import Console

CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What stays: each line behind the last code that clears it."""
        return CODE.sub("", self.getvalue().rpartition("\x1b[2K")[2]).strip()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """To be put in the place of stderr."""
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def bar(terminal: Terminal, total: float | None, steps: int, *, finish: bool = False) -> None:
    """One that is moved so many steps."""
    with redirect_stderr(terminal), Console().bar("reading", total, unit="texts") as shown:
        for _ in shown.over(range(steps)):
            pass
        if finish:
            shown.finish()


@pytest.mark.parametrize(
    ("total", "finish", "shown"), [(None, False, " 30/30 "), (40, True, " 30/30 "), (40, False, " 30/40 ")]
)
def test_a_bar_ends_with_what_was_done(terminal: Terminal, total: int | None, finish: bool, shown: str) -> None:
    bar(terminal, total, 30, finish=finish)
    assert shown in terminal.screen()
    assert not finish or terminal.screen().partition("texts/s")[1]


def test_a_bar_that_did_nothing_does_not_stay(terminal: Terminal) -> None:
    bar(terminal, None, 0)
    bar(terminal, 40, 0, finish=True)
    assert terminal.screen() == ""


def test_a_status_is_shown_and_does_not_stay(terminal: Terminal) -> None:
    with redirect_stderr(terminal), Console().status("loading the model"), redirect_stderr(io.StringIO()):
        time.sleep(0.3)
    assert terminal.getvalue().count("loading the model") > 2  # it goes on while stderr is kept from a library
    assert terminal.screen() == ""


def test_where_there_is_no_terminal_a_status_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().status("loading the model"):
        pass
    assert capsys.readouterr().err == ""


def test_items_pass_and_are_counted_even_if_not_all_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().bar("reading", None, unit="texts") as shown:
        items = shown.over(range(10))
        assert [next(items), next(items)] == [0, 1]
        items.close()  # type: ignore[attr-defined]
    assert "2/2" in capsys.readouterr().err.splitlines()[-1]
