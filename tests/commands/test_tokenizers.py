"""A tokenizer that does not belong to its model, or that contradicts itself, is told of before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from program import Llara
from tiny import make_model
from tokenizers import AddedToken
from transformers import AutoTokenizer

from llara_cli.core.errors import UserError
from llara_cli.model.recipe import PAPER, RELEASED
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer

ROWS = 400
VERBS = ["pretrain", "finetune", "encode"]


def extended(folder: Path, *tokens: Any, **special: str) -> Path:
    """The tiny model, whose tokenizer knows more tokens than it."""
    make_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_tokens_that_the_model_does_not_know_are_named(
    llara: Llara, corpus: Path, train: Path, beir: Path, tmp_path: Path, verb: str
) -> None:
    given = {"pretrain": corpus, "finetune": train, "encode": beir / "corpus.jsonl"}[verb]
    model = extended(tmp_path / "more", "river", "hills", "sea", "moon")
    outcome = llara(verb, given, "--model", model)
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {model}: its tokenizer has tokens that the model does not know: ")
    assert f"'river' ({ROWS}), 'hills' ({ROWS + 1}), 'sea' ({ROWS + 2}) and 1 more" in outcome.error
    assert f"rows for ids below {ROWS}" in outcome.error


@pytest.mark.parametrize("verb", VERBS)
def test_an_end_token_that_the_model_does_not_know_is_named(
    llara: Llara, corpus: Path, train: Path, beir: Path, tmp_path: Path, verb: str
) -> None:
    given = {"pretrain": corpus, "finetune": train, "encode": beir / "corpus.jsonl"}[verb]
    outcome = llara(verb, given, "--model", extended(tmp_path / "more", eos_token="<end>"))
    assert outcome.code == 2
    assert f"does not know: '<end>' ({ROWS})" in outcome.error


def test_special_tokens_that_no_sequence_has_do_not_count(llara: Llara, beir: Path, tmp_path: Path) -> None:
    """GGUF files may know an ``<unk>`` of this kind. Written inside a text it is plain text."""
    model = extended(tmp_path / "more", unk_token="river")
    assert llara("encode", beir / "corpus.jsonl", "--model", model, "--max-length", 64).code == 0


def test_tokens_below_those_that_a_recipe_adds_do_not_count(
    llara: Llara, corpus: Path, beir: Path, tmp_path: Path
) -> None:
    """A model gets rows for the recipe's tokens, and for what lies between them and its own."""
    tokenizer = TextTokenizer.load(ModelSource("more", str(extended(tmp_path / "more", AddedToken("river")))))
    tokenizer.check_ids(RELEASED, ROWS, "here")
    with pytest.raises(UserError, match="here: its tokenizer"):
        tokenizer.check_ids(PAPER, ROWS, "here")
    steps = ["--max-steps", 1, "--batch-size", 2]
    outcome = llara("pretrain", corpus, "--model", tmp_path / "more", "--recipe", "released", "--name", "m", *steps)
    assert outcome.code == 0, outcome.err
    assert llara("encode", beir / "corpus.jsonl", "--model", "m", "--max-length", 128).code == 0


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("told", [True, False, None])
def test_a_start_token_that_the_files_disagree_about_is_told_of_once(
    llara: Llara, train: Path, beir: Path, tmp_path: Path, start: bool, told: bool | None
) -> None:
    model = make_model(tmp_path / "model", start=start)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | ({} if told is None else {"add_bos_token": told})))
    tune = ["--model", model, "--name", "tuned", "--max-steps", 1, "--batch-size", 2]
    outcomes = [
        llara("encode", beir / "corpus.jsonl", "--model", model, "--max-length", 64, "--name", "e"),
        llara("evaluate", beir, "--model", model, "--max-length", 64),
        llara("finetune", train, *tune),
        llara("index", "e"),
        llara("search", "bees"),
    ]
    expected = 0 if told is None or told == start else 1
    for number, outcome in enumerate(outcomes):
        assert outcome.code == 0, outcome.err
        assert outcome.err.count("add_bos_token") == (0 if number == 3 else expected), outcome.err
    if expected:
        how = "texts are read with '<s>' before them" if start else "texts are read without one"
        assert f"{model}: tokenizer_config.json says add_bos_token: {str(told).lower()}" in outcomes[0].err
        assert how in outcomes[0].err
