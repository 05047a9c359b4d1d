"""What the library tells: progress to a callback, notes to logging, warnings as warnings, errors that name settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import Llara, beir, llara, train

from llara import (
    EvaluateConfig,
    FinetuneConfig,
    IndexConfig,
    LlaraWarning,
    LoraConfig,
    Model,
    PretrainConfig,
    Progress,
    UserError,
    Workspace,
    evaluate,
)  # fmt: skip
from llara_cli.commands.messages import with_flags

__all__ = ["beir", "llara", "train"]


def test_progress_reaches_the_callback_and_nothing_is_printed(
    beir: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Progress] = []
    workspace = Workspace(tmp_path / "ws", progress=seen.append)
    with caplog.at_level(logging.INFO, logger="llara"):
        first = workspace.encode(beir, model=str(tiny_model))
        again = workspace.encode(beir, model=str(tiny_model))
    (last,) = [each for each in seen if each.task == "encoding passages" and each.finished]
    assert (last.done, last.total, last.unit) == (first.count, first.count, "texts")
    assert again.path == first.path
    assert any("nothing to do" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


def test_what_the_user_should_know_is_a_warning(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    (beir / "corpus.jsonl").write_text('{"_id": "a", "text": ""}\n{"_id": "b", "text": "x"}\n')
    with pytest.warns(LlaraWarning, match="1 of 2 texts are empty"):
        Workspace(tmp_path / "ws").encode(beir, model=str(tiny_model))


@pytest.mark.parametrize(
    ("settings", "python", "flags", "command_line"),
    [
        ({"max_steps": 0}, "`max_steps` must be positive, not 0", ("--max-steps", 0), "--max-steps must be positive"),
        (
            {"max_steps": 1, "epochs": 1},
            "`max_steps` and `epochs` exclude each other",
            ("--max-steps", 1, "--epochs", 1),
            "--max-steps and --epochs exclude each other",
        ),
        (
            {"layout": "heap"},
            "`layout` must be auto, packed or bucketed, not 'heap'",
            ("--layout", "heap"),
            "--layout must be auto, packed or bucketed, not 'heap'",
        ),
    ],
)
def test_an_error_names_a_setting_in_python_and_its_flag_on_the_command_line(
    llara: Llara, train: Path, settings: dict[str, object], python: str, flags: tuple[object, ...], command_line: str
) -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == python
    outcome = llara("pretrain", train, *flags)
    assert outcome.code == 2
    assert command_line in outcome.error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`max_length=5` is above", "--max-length 5 is above"),
        ("`optimizer.weights='bf16'` needs", "--weights bf16 needs"),
        ("`in_batch_negatives=False` leaves", "--no-in-batch-negatives leaves"),
        ("`drop_stop_words=False`", "--keep-stop-words"),
        ("`restart=True` builds", "--restart builds"),
        ("raise `parameters['ef']`", "raise --set ef=..."),
        ("`parameters['M']=x`: bad", "--set M=x: bad"),
        ("`parameters={'ef': 64, 'M': 8}`", "--set ef=64 --set M=8"),
        ("`role` and `lora.rank`", "--as and --lora-rank"),
        ("a column `title` of the user's", "a column `title` of the user's"),
    ],
)
def test_settings_are_shown_as_flags(text: str, shown: str) -> None:
    assert with_flags(text) == shown


def test_mistakes_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    model = Model.load(tiny_model)
    with pytest.raises(UserError, match="`role` must be passage or query, not 'answer'"):
        model.encode("x", role="answer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"`dim=1000` is above the model's width of {model.dim}"):
        model.encode("x", dim=1000)
    with pytest.raises(UserError, match="`texts` must be strings, not int"):
        model.encode(["x", 3])  # type: ignore[list-item]
    for texts in (None, 3, b"x", {"a": 1}):
        with pytest.raises(UserError, match="`texts` must be a text or a list of texts, not"):
            model.encode(texts)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`attention` must be auto, varlen, flex or dense, not 'x'"):
        Model.load(tiny_model, attention="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown device 'abacus'"):
        Model.load(tiny_model, device="abacus")
    with pytest.raises(UserError, match="unknown index 'nothing'"):
        Workspace(tmp_path).load_index("nothing")


def test_mistakes_of_texts_and_vectors(tiny_model: Path) -> None:
    model = Model.load(tiny_model)
    with pytest.raises(UserError, match=r"`texts`: text 1 \(counted from 0\) is not valid Unicode"):
        model.encode(["x", "half a pair: \ud800"])
    for vectors in (np.full((2, model.dim), np.nan), np.zeros((1, 1, model.dim)), np.array(["x"])):
        with pytest.raises(UserError, match="vectors must be finite floats of shape"):
            model.similarity(["x"], vectors)
    with pytest.raises(UserError, match=f"queries of width {model.dim} and passages of width 3"):
        model.similarity(["x"], np.zeros((2, 3), np.float32))
    halves = model.encode(["x", "y"], dim=8)
    assert model.similarity(halves, halves).shape == (2, 2)
    with pytest.raises(UserError, match="`model` must be a string or a path, not None"):
        Model.load(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no model 'no-such-model' in the workspace, on this disk or"):
        Model.load("no-such-model")


def test_mistakes_of_jobs(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(UserError, match=r"`config` must be PretrainConfig\(...\), not FinetuneConfig"):
        workspace.pretrain(beir, FinetuneConfig())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`corpus` must be files or folders, not None"):
        workspace.pretrain(None)  # type: ignore[arg-type]
    index = workspace.index(workspace.encode(beir, model=tiny_model))
    with pytest.raises(UserError, match="`query` must be a text or a list of texts, not NoneType"):
        index.search(None)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PretrainConfig(batch_size=2.0), "`batch_size` must be a whole number, not 2.0"),  # type: ignore[arg-type]
        (lambda: PretrainConfig(seed="3"), "`seed` must be a whole number, not '3'"),  # type: ignore[arg-type]
        (lambda: FinetuneConfig(temperature=True), "`temperature` must be a number, not True"),
        (lambda: FinetuneConfig(lora=LoraConfig(merge="no")), "`lora.merge` must be True or False, not 'no'"),  # type: ignore[arg-type]
        (lambda: FinetuneConfig(lora=LoraConfig(targets="q")), "`lora.targets` must be a list, not 'q'"),  # type: ignore[arg-type]
        (lambda: FinetuneConfig(dims=(8, "x")), "`dims` must be a whole number, not 'x'"),  # type: ignore[arg-type]
        (lambda: IndexConfig(parameters=3), "`parameters` must be a mapping of names to values, not 3"),  # type: ignore[arg-type]
        (lambda: evaluate({"q": {"d": math.nan}}, {"q": {"d": 1}}), "query 'q', document 'd': nan is not a number"),
        (lambda: evaluate({"q": {"d": 1}}, {"q": {"d": 0.5}}), "document 'd': 0.5 is not a whole number"),  # type: ignore[dict-item]
        (lambda: evaluate({"q": ["d"]}, {"q": {"d": 1}}), "query 'q' must have a mapping of document ids"),  # type: ignore[dict-item]
        (lambda: evaluate([1], {"q": {"d": 1}}), "`run` must be a mapping or a file, not [1]"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_values_of_a_wrong_type(make: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError) as refusal:
        make()
    assert told in str(refusal.value)


def test_mistakes_of_settings_and_scores() -> None:
    assert FinetuneConfig(dims=[16, 8]).dims == (16, 8)  # type: ignore[arg-type]
    assert EvaluateConfig(data_root="beir").data_root == Path("beir")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`optimizer` must be OptimizerConfig\(...\), not {'name'"):
        FinetuneConfig(optimizer={"name": "adamw"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`qrels` has no query"):
        evaluate({}, {})
