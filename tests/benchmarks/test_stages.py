"""What the kit's stages share: errors are results, texts and models are always the same, every stage can be begun."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from gpu.bench import Bench
from gpu.models import PROMPTS, examples, passage_lengths, random_model, texts_of, tokenizer_of_words
from gpu.project_tests import Recorder
from gpu.results import Results
from gpu.shapes import SHAPES
from gpu.stages import turns

from llara_cli.core.errors import UserError

TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.skip(reason="not today")
def test_left_out(): pass
@pytest.fixture
def broken(): raise ValueError("no fixture")
def test_without(broken): pass
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A stage begun by hand, whose results lie in ``tmp_path``."""
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    return Bench(argparse.Namespace(device="cpu", warm=False))


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """What was written of each setting."""
    return {row["setting"]: row for row in Results(folder).rows()}


def needs_a_library() -> NoReturn:
    """As our own code tells of a library that is missing."""
    try:
        raise ModuleNotFoundError("No module named 'torchao'", name="torchao.float8")
    except ImportError as error:
        raise UserError("torchao is not installed") from error


def raises(error: BaseException) -> NoReturn:
    """As code does that fails."""
    raise error


def test_whatever_a_setting_raises_is_a_result(bench: Bench, tmp_path: Path) -> None:
    bench.attempt("memory", raises, torch.OutOfMemoryError("CUDA out of\nmemory"))
    bench.attempt("name", raises, AttributeError("no compile_layers"))
    bench.attempt("end", raises, SystemExit(3))
    bench.attempt("module", raises, ModuleNotFoundError("No module named 'ours'", name="ours"))
    bench.attempt("library", needs_a_library)
    found = rows(tmp_path)
    assert found["memory"]["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert found["name"]["failed"] == "AttributeError: no compile_layers"
    assert found["end"]["failed"] == "SystemExit: 3"
    assert found["module"]["failed"] == "ModuleNotFoundError: No module named 'ours'"
    assert found["library"]["skipped"] == "torchao.float8 is not installed"
    assert "failed" not in found["library"]
    with pytest.raises(KeyboardInterrupt):
        bench.attempt("stop", raises, KeyboardInterrupt())


def test_shares_are_of_the_datasheet_and_of_the_measured_product(bench: Bench, tmp_path: Path) -> None:
    assert bench.utilisation(1e14) == {"tflops": 100.0}
    Results(tmp_path).add("card", "versions", card="NVIDIA H200")
    Results(tmp_path).add("card", "bf16 product", tflops=800.0)
    assert bench.utilisation(98.9e12) == {
        "tflops": pytest.approx(98.9), "mfu": pytest.approx(0.1), "of_measured_product": pytest.approx(98.9 / 800),
    }  # fmt: skip


def test_a_warm_up_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_OUT", str(tmp_path))
    bench = Bench(argparse.Namespace(device="cpu", warm=True))
    bench.record("setting", seconds=1.0)
    assert not rows(tmp_path)
    assert bench.shape("7B").num_hidden_layers == 1


def test_each_test_of_the_project_is_a_result(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    pytest.main([str(tmp_path), f"--rootdir={tmp_path}", "-q", "-p", "no:cacheprovider"], plugins=[Recorder(bench)])
    found = {setting.rpartition("::")[2]: row for setting, row in rows(tmp_path).items()}
    assert found["test_right"]["passed"]
    assert found["test_wrong"]["failed"] == "call: assert 1 == 2"
    assert "not today" in found["test_left_out"]["skipped"]
    assert found["test_without"]["failed"] == "setup: ValueError: no fixture"


def test_words_are_tokens() -> None:
    tokenizer = tokenizer_of_words()
    lengths = passage_lengths(20)
    for row, length in zip(tokenizer.encode(texts_of(lengths, 0)), lengths, strict=True):
        assert length <= len(row) <= length + 3  # the first word has no blank before it
    assert len(tokenizer.hf) <= SHAPES["135M"].toy().vocab_size


@pytest.mark.parametrize("kind", ["full", "mixed"])
def test_a_step_has_the_tokens_that_were_asked_for(kind: str) -> None:
    prompts = PROMPTS["paper"]
    found = [len(each.text) + prompts.overhead() for each in examples(kind, 8192, 512, 4096, prompts)]
    assert max(found) <= 512
    assert 8192 <= sum(found) < 8192 + 512
    if kind == "full":
        assert set(found) == {512}


def test_random_models_are_equal_each_time() -> None:
    shape = SHAPES["135M"].toy()
    one, other = (random_model(shape, torch.float32, torch.device("cpu")) for _ in range(2))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    linear = [layer for layer in one.model.modules() if isinstance(layer, torch.nn.Linear)]
    assert shape.body == sum(layer.weight.numel() for layer in linear)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_stage_can_be_begun(device: str) -> None:
    every = [stage for turn in turns(device) for stage in turn]
    assert len({stage.name for stage in every}) == len(every)
    assert all("/" not in stage.name for stage in every)  # a log is called so
    for stage in every:
        assert stage.command[0] == "-m"
        assert find_spec(stage.command[1]) is not None
        assert list(stage.command[-2:]) == ["--device", device]
    warm = [stage for stage in every if "--warm" in stage.command]
    assert bool(warm) == (device == "cuda")
    assert np.all([stage.needs <= stage.limit for stage in every])
