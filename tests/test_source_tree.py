"""A source tree that is on the path, and not installed: no metadata, and so no entry points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llara_cli import __version__
from llara_cli.core import registry

REPO = Path(__file__).resolve().parents[1]
LEFT_OUT = ("llara-", "_editable_impl_llara", "datasets", "sentence_transformers")


Python = Callable[..., str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """What a Python prints that has a copy of the tree, and the libraries installed here except ``LEFT_OUT``."""
    (libraries := tmp_path / "libraries").mkdir()
    for folder in (Path(entry) for entry in sys.path if Path(entry).name == "site-packages"):
        for path in folder.iterdir():
            link = libraries / path.name
            if not path.name.startswith(LEFT_OUT) and not link.exists():
                link.symlink_to(path)
    for package in ("llara_cli", "backends"):
        shutil.copytree(REPO / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join(map(str, (tmp_path, tmp_path / "backends", libraries)))

    def call(*arguments: str) -> str:
        command = [sys.executable, "-S", *arguments]  # without what this Python's own site-packages declare
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_a_tree_that_is_not_installed_has_its_backends(python: Python) -> None:
    ask = (
        "from importlib.metadata import entry_points as e; print([*e(group='llara.index'), *e(group='llara.training')])"
    )
    assert python("-c", ask) == "[]\n"
    told = [line.split() for line in python("-m", "llara_cli", "doctor").splitlines()]
    facts = {words[0]: words[1:] for words in told if words}
    assert facts["llara"] == [__version__]
    assert facts["datasets"] == ["not", "installed:", "pip", "install", "datasets"]
    states = {(words[0], words[1]): words[2:4] for words in told if words and words[0] in registry.GROUPS}
    assert states.keys() == {(kind, name) for kind, own in registry.OWN.items() for name in own}
    assert states["training", "full"] == states["encoder", "torch"] == states["index", "exact"] == ["llara", "yes"]
    assert states["encoder", "sentence-transformers"] == ["llara", "no:"]
