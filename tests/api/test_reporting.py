"""What the library tells: progress to a callback, notes to logging, warnings as warnings, errors that name settings."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from program import Llara, beir, llara, train

from llara import FinetuneConfig, LlaraWarning, Model, PretrainConfig, Progress, UserError, Workspace, evaluate
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


def test_mistakes_of_settings_and_scores() -> None:
    assert FinetuneConfig(dims=[16, 8]).dims == (16, 8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`optimizer` must be OptimizerConfig\(...\), not {'name'"):
        FinetuneConfig(optimizer={"name": "adamw"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`qrels` has no query"):
        evaluate({}, {})
