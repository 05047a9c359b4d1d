"""Documents that repeat the code say what the code says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llara_cli import app
from llara_cli.commands import (
    backends,
    clean,
    compare,
    doctor,
    encode,
    evaluate,
    export,
    finetune,
    index,
    mine,
    pretrain,
    search,
    status,
)
from llara_cli.core import registry

REPO = Path(__file__).resolve().parents[1]
VERBS = (pretrain, finetune, mine, encode, index, search, evaluate, compare, export, status, clean, doctor, backends)


def test_every_verb_is_in_the_help_with_its_own_first_line() -> None:
    modules = {module.__name__.rpartition(".")[2]: module for module in VERBS}
    assert modules.keys() == app.VERBS.keys()
    for name, module in modules.items():
        function = getattr(module, name)
        assert function.__doc__.splitlines()[0] == app.VERBS[name].summary


def test_the_readme_has_the_figures_of_the_benchmarks() -> None:
    command = [sys.executable, str(REPO / "benchmarks" / "readme.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
    ratio = json.loads((REPO / "benchmarks" / "startup.json").read_text())["ratio"]
    assert f"{ratio:.2f} |" in (REPO / "README.md").read_text()


def test_the_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(REPO / "docs" / "generate.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_readme_names_every_extra() -> None:
    readme = (REPO / "README.md").read_text()
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for extra in extras if f"`{extra}`" not in readme} <= {"test"}


def test_the_registry_has_the_backends_that_are_declared() -> None:
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared == {registry.GROUPS[kind]: own for kind, own in registry.OWN.items()}


def test_nothing_speaks_of_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        text = (REPO / name).read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"(?<![\w.])/(work|opt|root)/\w", text), name
