"""What llara computes with a model is what the model computes by itself, whatever its architecture."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from architectures import CAUSAL, NO_PRETRAINING, REFUSED, VOCABULARY, make
from torch import Tensor

from llara_cli.core.errors import UserError
from llara_cli.model.batching import Rows
from llara_cli.model.decoder import Decoder
from llara_cli.model.sequences import Tree, place_in_rows, place_some

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PLENTY = 10_000
"""Tokens of a forward that takes all texts of a test."""


def trees(lengths: list[int]) -> list[Tree]:
    """Random texts of these lengths, each with a prompt of three tokens."""
    random = np.random.default_rng(3)
    return [Tree(random.integers(5, VOCABULARY, length), [random.integers(5, VOCABULARY, 3)]) for length in lengths]


def compute(decoder: Decoder, texts: list[Tree], forwards: list[Rows], multiple: int = 1) -> Tensor:
    """The hidden state at the end of each text (texts, dim), computed in these forwards."""
    found = torch.empty(len(texts), decoder.dim)
    with torch.no_grad():
        for rows in forwards:
            numbers, token_rows = place_some(texts, rows, multiple)
            found[numbers] = decoder.slots(token_rows)[:, 0]
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_hidden_states_are_the_models_own(name: str) -> None:
    model = make(name)
    decoder = Decoder(model)
    decoder.check(name)
    ids = trees([9])[0].trunk
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids.tolist()]), use_cache=False, output_hidden_states=True)
        found = decoder.hidden(place_in_rows([Tree(ids, [])]))
    assert found.shape == (9, decoder.dim)
    torch.testing.assert_close(found, wanted.hidden_states[-1][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in NO_PRETRAINING])
def test_logits_are_the_models_own(name: str) -> None:
    model = make(name)
    decoder = Decoder(model)
    ids = trees([9])[0].trunk
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids.tolist()]), use_cache=False).logits[0]
        hidden = decoder.hidden(place_in_rows([Tree(ids, [])]))
        found = decoder.logits.of(decoder.projection(decoder.logits.head_input(hidden)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "granite", "gemma2", "minicpm3", "mamba2", "qwen2_moe", "bert"])
def test_half_precision_is_tried_as_well(name: str, dtype: torch.dtype) -> None:
    half, full = Decoder(deepcopy(make(name)).to(dtype)), Decoder(make(name))
    half.check(name)
    assert half.logits.input_scale == pytest.approx(full.logits.input_scale, rel=1e-4)
    assert half.logits.scale == pytest.approx(full.logits.scale, rel=1e-6)
    assert half.logits.cap == (None if full.logits.cap is None else pytest.approx(full.logits.cap, rel=1e-6))
    assert type(half.logits.transform) is type(full.logits.transform)


@pytest.mark.parametrize(("name", "why"), NO_PRETRAINING.items())
def test_logits_that_cannot_be_told_from_hidden_states_are_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"{name}: its logits cannot be computed from its hidden states.*{why}"):
        _ = Decoder(make(name)).logits


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, (_, _, why) in REFUSED.items()])
def test_a_model_that_is_no_causal_decoder_is_refused(name: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        Decoder(make(name)).check("somewhere")
    assert str(refused.value).startswith("somewhere: ")
    assert why in str(refused.value)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_text_does_not_depend_on_its_neighbours(name: str) -> None:
    """Alone, beside shorter and longer texts, and packed into rows with others: LongRoPE switches at 16 positions."""
    decoder = Decoder(make(name))
    texts = trees([4, 40, 1, 12, 13, 14, 25, 9])
    lengths = [len(text) for text in texts]
    alone = compute(decoder, texts, [[[number]] for number in range(len(texts))])
    padded = decoder.batching("bucketed", PLENTY)
    torch.testing.assert_close(compute(decoder, texts, padded.forwards(lengths)), alone, atol=1e-5, rtol=1e-5)
    if decoder.runs_jointly():
        packed = decoder.batching("packed", PLENTY)
        for batching in (padded, packed):  # rows of more tokens than the model has positions for
            found = compute(decoder, texts, batching.forwards(lengths), multiple=128)
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
