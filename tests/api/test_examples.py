"""Every public object of the Python API has an example in its docstring, and the examples hold."""

from __future__ import annotations

import doctest
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import beir, corpus, train

import llara

__all__ = ["beir", "corpus", "train"]
NO_EXAMPLE_NEEDED = {"__version__", "UserError", "LlaraError", "LlaraWarning", "Progress"}


@pytest.fixture
def place(
    tmp_path: Path, corpus: Path, train: Path, beir: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the examples use: tiny-model, wiki.jsonl, train.jsonl, corpus.jsonl, small (BEIR layout)."""
    shutil.copytree(tiny_model, tmp_path / "tiny-model")
    (tmp_path / "corpus.jsonl").symlink_to(beir / "corpus.jsonl")
    (tmp_path / "small").symlink_to(beir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples() -> Iterator[doctest.DocTest]:
    """The examples of the module and of its public objects, each with those of its methods."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    yield from (test for test in finder.find(llara, "llara", module=False) if test.name == "llara")
    for name in llara.__all__:
        value = getattr(llara, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield from (test for test in finder.find(value, name, module=False, globs={}) if test.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example(example: doctest.DocTest, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example)
    printed = capsys.readouterr()
    assert runner.summarize(verbose=False).failed == 0, printed.out
    assert printed.err == ""  # the library prints nothing


def test_every_public_object_has_an_example() -> None:
    shown = {example.name.partition(".")[0] for example in examples()}
    assert set(llara.__all__) - NO_EXAMPLE_NEEDED <= shown


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'faiss', 'pyarrow'}"
    code = f"import sys, llara; llara.PretrainConfig(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
