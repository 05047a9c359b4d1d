"""The encode engine: it backs off where memory is short, and tokenises ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEXTS

from llara_cli.model.ahead import ahead
from llara_cli.model.backbone import Backbone
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.layout import Layout
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import PAPER
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import AT_ONCE, TextTokenizer


class Small(Backbone):
    """A device that has room for so many tokens a forward."""

    room = 10**9

    def slots(self, layout: Layout) -> torch.Tensor:
        if layout.ids.size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().slots(layout)


@pytest.fixture
def encoder(tiny_model: Path, request: pytest.FixtureRequest) -> Encoder:
    """An encoder that would like to compute 2,048 tokens at a time."""
    source = ModelSource("tiny", str(tiny_model))
    backbone = Small(load_causal_lm(source, torch.float32).eval())
    sequencer = Sequencer(TextTokenizer.load(source), PAPER, {"passage": 100})
    heard: list[str] = []
    encoder = Encoder(backbone, PAPER, sequencer, 2048, getattr(request, "param", "bucketed"), heard.append)
    vars(encoder)["heard"] = heard
    return encoder


@pytest.mark.parametrize("encoder", ["packed", "bucketed"], indirect=True)
def test_forwards_that_do_not_fit_are_halved(encoder: Encoder) -> None:
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    wanted = encoder.encode(texts, "passage")
    vars(encoder.backbone)["room"] = 300
    told: list[int] = []
    found = encoder.encode(texts, "passage", told.append)
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=2e-6)
    assert sum(told) == len(texts)
    assert 100 <= encoder.batching.budget <= 300
    heard = len(vars(encoder)["heard"])
    assert heard > 0
    encoder.encode(texts, "passage")
    assert len(vars(encoder)["heard"]) == heard  # what was learnt is kept


def test_one_text_that_does_not_fit_is_an_error(encoder: Encoder) -> None:
    vars(encoder.backbone)["room"] = 20
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(["a text of more than twenty tokens, or so I was told by the one who wrote it"], "passage")


def test_each_batch_is_encoded_as_it_is_alone(encoder: Encoder) -> None:
    batches = [TEXTS[:2], [], TEXTS[2:]]
    for found, texts in zip(encoder.encode_each(batches, "passage"), batches, strict=True):
        assert found.vectors.tobytes() == encoder.encode(texts, "passage").vectors.tobytes()


def test_ahead_keeps_the_order_and_is_one_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    for number, found in enumerate(ahead(lambda item: item * item, items())):
        assert found == number * number
        assert len(taken) <= number + 2
    assert taken == list(range(5))


@pytest.mark.parametrize("where", ["items", "function"])
def test_ahead_raises_in_turn(where: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        if where == "items":
            raise ValueError("third")
        yield 0

    def function(item: int) -> Any:
        if not item:
            raise ValueError("third")
        return item

    found = ahead(function, items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="third"):
        next(found)


def test_many_texts_are_tokenised_as_each_alone_is(tiny_model: Path) -> None:
    tokenizer = TextTokenizer.load(ModelSource("tiny", str(tiny_model)))
    texts = [f"{TEXTS[number % 5]} {number}" for number in range(2 * AT_ONCE + 7)]
    alone = [ids for text in texts for ids in tokenizer.encode([text])]
    assert tokenizer.encode(texts) == alone
    assert tokenizer.encode(texts, limit=3) == [ids[:3] for ids in alone]
    made = Sequencer(tokenizer, PAPER, {"passage": 20}).trees([*texts, ""], "passage")
    assert len(made.trees) == len(texts) + 1
    assert (made.tokens, made.empty) == (sum(len(tree.trunk) - len(made.trees[-1].trunk) for tree in made.trees), 1)
    assert made.cut == sum(len(tree) == 20 for tree in made.trees)
