"""Attention over segments is dense attention under the tree's mask, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_joint_pass import CONFIGS, SHAPE, with_exact_norms
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, LlamaConfig, PretrainedConfig

from llara_cli.core.errors import UserError
from llara_cli.model.batching import Batching, pack
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.sequences import TokenRows, Tree, place_in_rows, visible
from llara_cli.model.tokenizer import PromptIds
from llara_cli.model.varlen import attend, plan_of, segments_of
from llara_cli.training.pretext import Example, PretextObjective

CPU = torch.device("cpu")
PROMPTS = PromptIds((1,), {"self": (5, 6, 7), "next": (5, 9, 10, 8)}, 1, 1)


def tree_of(lengths: Sequence[int]) -> Tree:
    """A trunk and branches of these many tokens."""
    return Tree([5] * lengths[0], [[6] * length for length in lengths[1:]])


lengths = st.lists(
    st.builds(lambda trunk, branches: [trunk, *branches], st.integers(0, 12), st.lists(st.integers(1, 6), max_size=4)),
    min_size=1,
    max_size=6,
).filter(lambda trees: any(map(sum, trees)))


def dense(query: Tensor, key: Tensor, value: Tensor, token_rows: TokenRows, window: int | None) -> Tensor:
    """Under the mask: (R * L, heads, width) of each."""
    rows, width = token_rows.ids.shape
    query, key, value = (part.unflatten(0, (rows, width)).transpose(1, 2) for part in (query, key, value))
    seen = torch.from_numpy(visible(token_rows, window))[:, None]
    found = functional.scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)
    return found.transpose(1, 2).flatten(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    capacity=st.integers(1, 60),
    multiple=st.sampled_from([1, 16]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    window=st.one_of(st.none(), st.integers(1, 8)),
)
def test_segments_give_what_the_mask_gives(
    lengths: list[list[int]], capacity: int, multiple: int, heads: tuple[int, int], window: int | None
) -> None:
    trees = [tree_of(each) for each in lengths]
    token_rows = place_in_rows(trees, pack([len(tree) for tree in trees], capacity), multiple)
    draw = torch.Generator().manual_seed(0)
    shapes = [(token_rows.ids.size, count, 8) for count in (heads[0], heads[1], heads[1])]
    leaves = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    real = torch.from_numpy(token_rows.real.reshape(-1))  # what padding sees of padding is nobody's concern
    upstream = torch.randn(shapes[0], generator=draw, dtype=torch.float64) * real[:, None, None]
    found = attend(*leaves, plan_of(token_rows, CPU), 0.3, window)
    wanted = dense(*leaves, token_rows, window)
    torch.testing.assert_close(found[real], wanted[real], atol=1e-12, rtol=0)
    both = (torch.autograd.grad(each, leaves, upstream) for each in (found, wanted))
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_segments_of_a_row() -> None:
    token_rows = place_in_rows([tree_of([3, 2, 1]), tree_of([2]), tree_of([0, 1, 2])], [[0, 1, 2]], 16)
    found = segments_of(token_rows)
    np.testing.assert_array_equal(found.queries, [5, 1, 2, 1, 2, 5])  # the last is padding
    np.testing.assert_array_equal(found.keys, [5, 4, 2, 1, 2, 5])
    np.testing.assert_array_equal(found.order[:9], [0, 1, 2, 3, 4, 0, 1, 2, 5])
    np.testing.assert_array_equal(found.order[9:], np.arange(6, 16))


def test_keys_stay_where_no_trunk_has_two_branches() -> None:
    assert plan_of(place_in_rows([tree_of([3, 2]), tree_of([4])], [[0, 1]]), CPU).gathering is None


@cache
def decoders(name: str) -> tuple[Decoder, Decoder]:
    """The same weights in float64, computed in segments, and under a mask."""
    found = []
    for attention in ("varlen", "dense"):
        torch.manual_seed(0)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]))
        found.append(Decoder(with_exact_norms(model).double().eval()))
        found[-1].use_attention(attention)
    return found[0], found[1]


def examples() -> list[Example]:
    """Texts of all lengths, some without a target."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(11, 97, count) for count in (0, 1, 30, 17, 9, 44, 3)]
    return [
        Example(text, {"self": text, "next": draw.integers(11, 97, number % 3)}) for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("batching", [Batching("packed", 400, 400, 128), Batching("packed", 150, 60),
                                      Batching("bucketed", 200, 60)])  # fmt: skip
@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_is_the_same(name: str, recipe: Recipe, batching: Batching) -> None:
    found = []
    for decoder in decoders(name):
        decoder.model.zero_grad()
        terms = PretextObjective(decoder, recipe, PROMPTS, batching).backward(examples())
        gradients = [w.grad.clone() for w in decoder.model.parameters() if w.grad is not None]
        found.append((torch.tensor([terms.loss], dtype=torch.float64), *gradients))
    tolerance = 1e-5 if name == "gemma-mixed" else 1e-10  # its norms compute in float32
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


def test_rows_are_as_long_as_a_forward() -> None:
    varlen, masked = decoders("llama")
    assert [each.rows_are_free for each in (varlen, masked)] == [True, False]
    assert [each.batching("packed", 4096).row_tokens for each in (varlen, masked)] == [None, 256]
    assert varlen.runs_jointly()


def test_a_model_in_fp32_is_tried_in_what_autocast_computes_in() -> None:
    """Its hidden states are fp32, but as far from each other as roundings to bf16 take them."""
    shape = SHAPE | {"hidden_size": 64, "num_hidden_layers": 4, "initializer_range": 0.3}
    torch.manual_seed(0)
    with quiet_transformers():
        model = Decoder(AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_key_value_heads=1)))
    token_rows = place_in_rows([tree_of([9, 2, 3]), tree_of([4, 2])], [[0, 1]])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        masked = model.slots(token_rows)
        model.use_attention("varlen")
        found = model.slots(token_rows)
    assert found.dtype == torch.float32
    assert 1e-3 < float((found - masked).norm() / masked.norm()) < 5e-2


def refusal(config: PretrainedConfig, attention: str) -> str:
    """Why a model of this kind cannot."""
    torch.manual_seed(0)
    with quiet_transformers():
        decoder = Decoder(AutoModelForCausalLM.from_config(config).eval())
    before = decoder.hidden(place_in_rows([tree_of([5, 2])]))
    with pytest.raises(UserError, match=f"`attention='{attention}'`") as error:
        decoder.use_attention(attention)
    torch.testing.assert_close(decoder.hidden(place_in_rows([tree_of([5, 2])])), before)  # nothing was left switched
    return str(error.value)


def test_models_that_it_cannot_do_are_refused_with_the_reason() -> None:
    small = {key: value for key, value in SHAPE.items() if key in ("vocab_size", "hidden_size")}
    assert "takes no positions" in refusal(BloomConfig(**small, n_layer=2, n_head=2), "varlen")
    assert "dropout" in refusal(LlamaConfig(**SHAPE, attention_dropout=0.1), "varlen")
    assert "softcap" in refusal(Gemma2Config(**SHAPE, num_key_value_heads=1, head_dim=8), "varlen")
    assert "sliding windows" in refusal(LlamaConfig(**SHAPE, sliding_window=7), "varlen")
    assert "CUDA" in refusal(LlamaConfig(**SHAPE), "flex")
