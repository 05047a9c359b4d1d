"""Standard output and error that are closed, full or have few letters; odd terminals; names that are not UTF-8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import Llara

FULL = Path("/dev/full")


def llara_in_shell(redirection: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, its streams redirected by the shell."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "llara_cli", *map(str, arguments)]
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(command, capture_output=True, encoding=encoding, check=False, env=os.environ | environment)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_stream_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    workspace = tmp_path / "é-基线"
    shown = llara_in_shell("", "status", "-w", workspace, PYTHONIOENCODING=encoding, COLUMNS="200")
    assert (shown.returncode, shown.stderr) == (0, "")
    expected = {"ascii": r"\xe9-\u57fa\u7ebf", "latin-1": r"é-\u57fa\u7ebf", "utf-8": "é-基线"}[encoding]
    assert expected in "".join(shown.stdout.split())
    told = llara_in_shell("", "status", "--json", "-w", workspace, PYTHONIOENCODING=encoding)
    assert json.loads(told.stdout)["workspace"] == str(workspace)


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json"), ("--help",), ("--version",)])
def test_output_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    workspace = () if arguments[0].startswith("-") else ("-w", tmp_path / "ws")
    closed = llara_in_shell(">&-", *arguments, *workspace)
    assert (closed.returncode, closed.stderr) == (1, "error: standard output is closed\n")
    if FULL.exists():
        full = llara_in_shell(f"> {FULL}", *arguments, *workspace)
        assert (full.returncode, full.stderr) == (1, "error: standard output: No space left on device\n")
    left = llara_in_shell("| true; wait", *arguments, *workspace)
    assert left.stderr == ""


def test_standard_error_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    for redirection in ("2>&-", f"2> {FULL}" if FULL.exists() else "2>&-"):
        done = llara_in_shell(redirection, "status", "--json", "-w", tmp_path / "ws")
        assert (done.returncode, json.loads(done.stdout)["artifacts"]) == (0, [])
        assert llara_in_shell(redirection, "statsu").returncode == 2


@pytest.mark.parametrize("columns", ["0", "-5", "abc", "", "99999999999", "1" * 5000, "10001", "٨٠"])
def test_odd_widths_are_passed_over(tmp_path: Path, columns: str) -> None:
    done = llara_in_shell("", "status", "-w", tmp_path / "ws", COLUMNS=columns)
    assert "nothing yet: llara pretrain CORPUS makes the first model" in done.stdout
    assert "Usage: llara" in llara_in_shell("", "--help", COLUMNS=columns).stdout


def test_no_argument_gives_the_help() -> None:
    done = llara_in_shell("")
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage: llara" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_not_utf8(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    corpus, folder = tmp_path / os.fsdecode(b"caf\xe9.jsonl"), tmp_path / os.fsdecode(b"set\xe9")
    shutil.copy(beir / "corpus.jsonl", corpus)
    beir.rename(folder)
    command = ("encode", corpus, "--model", tiny_model, "--json")
    made = llara(*command)
    assert made.code == 0, made.err
    assert made.json["name"] == "tiny-caf"
    assert llara(*command).json == made.json
    assert llara("status", "--json").json["artifacts"][0]["name"] == "tiny-caf"
    measure = ("evaluate", folder, "--model", tiny_model, "--json", "-q")
    measured = llara(*measure)
    assert measured.code == 0, measured.err
    assert measured.json["benchmark"] == folder.name
    assert llara(*measure).out == measured.out


def test_ctrl_c_at_the_prompt_ends_quietly(
    llara: Llara, beir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        """A user who presses Ctrl-C."""

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            raise KeyboardInterrupt

    assert llara("encode", beir, "--model", tiny_model).code == 0
    assert llara("index").code == 0
    monkeypatch.setattr(sys, "stdin", Terminal())
    outcome = llara("search", "--interactive", "-q")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, "query> ")
