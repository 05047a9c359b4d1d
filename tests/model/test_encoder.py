"""The encode engine: it backs off where memory is short, and tokenizes ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import make
from tiny import TEXTS, make_model

from llara_cli.model.batching import CPU_FORWARD_TOKENS, MOST_FORWARD_TOKENS, Batching
from llara_cli.model.block_mask import BLOCK_TOKENS
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer, text_batching
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.prefetch import prefetch
from llara_cli.model.recipe import PAPER
from llara_cli.model.sequences import TokenRows
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import AT_ONCE, TextTokenizer


class Small(Decoder):
    """A device that has room for so many tokens a forward."""

    room = 10**9

    def slots(self, token_rows: TokenRows) -> torch.Tensor:
        if token_rows.ids.size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().slots(token_rows)


class Free(Small):
    """Attention that is said to skip what texts of a row do not see of each other."""

    @property
    def rows_are_free(self) -> bool:
        return True


@pytest.fixture
def encoder(tiny_model: Path, request: pytest.FixtureRequest) -> Encoder:
    """An encoder that would like to compute 2,048 tokens at a time."""
    source = ModelSource("tiny", str(tiny_model))
    decoder = Small(load_causal_lm(source, torch.float32).eval())
    sequencer = Sequencer(TextTokenizer.load(source), PAPER, {"passage": 100})
    heard: list[str] = []
    encoder = Encoder(decoder, PAPER, sequencer, 2048, getattr(request, "param", "bucketed"), heard.append)
    vars(encoder)["heard"] = heard
    return encoder


@pytest.mark.parametrize("encoder", ["packed", "bucketed"], indirect=True)
def test_forwards_that_do_not_fit_are_halved(encoder: Encoder) -> None:
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    wanted = encoder.encode(texts, "passage")
    vars(encoder.decoder)["room"] = 300
    told: list[int] = []
    found = encoder.encode(texts, "passage", told.append)
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=2e-6)
    assert sum(told) == len(texts)
    assert 100 <= encoder.batching.budget <= 300
    heard = len(vars(encoder)["heard"])
    assert heard > 0
    encoder.encode(texts, "passage")
    assert len(vars(encoder)["heard"]) == heard  # what was learnt is kept


def test_rows_that_do_not_fit_are_rounded_up_to_less(encoder: Encoder) -> None:
    """As they are where few widths are wanted: a row of half as many tokens must not be padded to as many again."""
    texts = [" ".join(TEXTS) for _ in range(9)]
    wanted = encoder.encode(texts, "passage").vectors
    encoder.batching = Batching("packed", 2048, multiple=1024)
    vars(encoder.decoder)["room"] = 300
    np.testing.assert_allclose(encoder.encode(texts, "passage").vectors, wanted, atol=1e-5)
    assert vars(encoder)["heard"][0] == "out of memory with 1024 tokens per forward: continuing with 512"
    assert encoder.batching.multiple == 128


def test_many_vectors_are_fetched_in_parts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    encoder.batching = replace(encoder.batching, budget=200)
    wanted = encoder.encode(texts, "passage").vectors
    monkeypatch.setattr("llara_cli.model.encoder.FETCHED", 7)
    np.testing.assert_array_equal(encoder.encode(texts, "passage").vectors, wanted)


def test_what_was_computed_before_a_forward_that_does_not_fit_is_kept(encoder: Encoder) -> None:
    """Here memory is gone after a while, not with the longest forward, which comes first."""
    encoder.batching = replace(encoder.batching, budget=400)
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    wanted = encoder.encode(texts, "passage").vectors
    computed: list[int] = []
    told: list[int] = []

    def slots(token_rows: TokenRows) -> torch.Tensor:
        if len(computed) == 3:
            computed.append(0)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        computed.append(len(token_rows.slots))
        return Small.slots(encoder.decoder, token_rows)

    vars(encoder.decoder)["slots"] = slots
    np.testing.assert_allclose(encoder.encode(texts, "passage", told.append).vectors, wanted, atol=2e-6)
    assert sum(computed) == sum(told) == len(texts)  # none of them twice


@pytest.mark.parametrize("budget", [100, 500])
def test_whole_rows_give_the_vectors_of_texts_alone(encoder: Encoder, budget: int) -> None:
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    wanted = encoder.encode(texts, "passage").vectors
    packed = Encoder(Free(encoder.decoder.model), PAPER, encoder.sequencer, budget)
    assert (packed.batching.layout, packed.batching.row_tokens) == ("packed", None)
    ran: list[int] = []
    packed.decoder.body.register_forward_hook(lambda module, given, found: ran.append(len(found[0])))
    np.testing.assert_allclose(packed.encode(texts, "passage").vectors, wanted, atol=1e-5)
    assert set(ran) == {1}
    assert len(ran) > 1


# torch's own import of its inductor; that nothing is compiled here is meant
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_whole_rows_are_for_attention_in_blocks(encoder: Encoder, tmp_path: Path) -> None:
    source = ModelSource("wide", str(make_model(tmp_path / "wide", "wide")))
    decoder = Decoder(load_causal_lm(source, torch.float32).eval())
    texts = [" ".join(TEXTS[: 1 + n % 3]) for n in range(9)]
    dense = Encoder(decoder, PAPER, encoder.sequencer)
    assert dense.batching.layout == "bucketed"
    wanted = dense.encode(texts, "passage").vectors
    with torch.compiler.set_stance("force_eager"):
        assert decoder.attend_in_blocks()
        blocks = Encoder(decoder, PAPER, encoder.sequencer, 400)
        found = blocks.encode(texts, "passage").vectors
    assert (blocks.batching.layout, blocks.batching.row_tokens, blocks.batching.multiple) == (
        "packed", None, BLOCK_TOKENS
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_models_that_take_no_mask_are_never_packed() -> None:
    assert text_batching(Free(make("bloom")), "auto", 100).layout == "bucketed"
    assert text_batching(Free(make("bloom")), "packed", 100).layout == "bucketed"
    assert text_batching(Free(make("llama")), "bucketed", 100).layout == "bucketed"


def test_one_text_that_does_not_fit_is_an_error(encoder: Encoder) -> None:
    vars(encoder.decoder)["room"] = 20
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

    for number, found in enumerate(prefetch(lambda item: item * item, items())):
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

    found = prefetch(function, items())
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


def test_a_forwards_cost_goes_by_the_device(encoder: Encoder) -> None:
    decoder = encoder.decoder
    assert decoder.batching("bucketed", 500).forward_tokens == CPU_FORWARD_TOKENS
    decoder.model.to("meta")
    layouts = ["bucketed", "packed"]
    assert {decoder.batching(layout, 500).forward_tokens for layout in layouts} == {MOST_FORWARD_TOKENS}
