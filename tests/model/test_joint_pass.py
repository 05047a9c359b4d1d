"""One forward over a tree equals one forward per branch, whatever the texts and the layout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    Qwen2Config,
)

from llara_cli.model.batching import pack
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.sequences import Tree, place_in_rows

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=1),
    "qwen": Qwen2Config(**SHAPE, num_key_value_heads=1),
    "neox": GPTNeoXConfig(**SHAPE),
    "mistral-window": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=7),
    "gemma-mixed": Gemma3TextConfig(
        **SHAPE,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


@cache
def decoder(name: str, attention: str = "sdpa") -> Decoder:
    """A tiny random model in float64."""
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    return Decoder(with_exact_norms(model).double().eval())


def with_exact_norms(model: nn.Module) -> Any:
    """transformers' RMSNorm computes in float32 whatever the weights are: torch's own takes its place for this test."""
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ in {"LlamaRMSNorm", "Qwen2RMSNorm", "MistralRMSNorm"}:
            parent, _, own = name.rpartition(".")
            exact = nn.RMSNorm(layer.weight.shape, eps=layer.variance_epsilon)
            exact.weight.data.copy_(layer.weight.data)
            setattr(model.get_submodule(parent), own, exact)
    return model


def separate(trees: Sequence[Tree]) -> list[Tree]:
    """Each branch with a trunk of its own."""
    return [Tree(tree.trunk, [branch], tree.slots) for tree in trees for branch in tree.branches]


def slots_and_gradients(model: Decoder, trees: Sequence[Tree], rows: Any) -> tuple[Tensor, list[Tensor]]:
    """Slots' hidden states, and the gradient of a fixed weighting of them."""
    model.model.zero_grad()
    slots = model.slots(place_in_rows(trees, rows))
    weights = torch.randn(slots.shape, dtype=slots.dtype, generator=torch.Generator().manual_seed(1))
    (slots * weights).sum().backward()
    return slots.detach(), [w.grad.clone() for w in model.model.parameters() if w.grad is not None]


token_ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=12)
prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=6)


@pytest.mark.parametrize("name", ["llama", "qwen", "neox", "mistral-window"])
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(token_ids, min_size=1, max_size=5), self_=prompts, next_=prompts, capacity=st.integers(1, 60))
def test_joint_equals_two_passes(
    name: str, texts: list[list[int]], self_: list[int], next_: list[int], capacity: int
) -> None:
    trees = [Tree(text, [self_, next_], 2) for text in texts]
    rows = pack([len(tree) for tree in trees], capacity)
    joint, joint_gradients = slots_and_gradients(decoder(name), trees, rows)
    alone, alone_gradients = slots_and_gradients(decoder(name), separate(trees), None)
    torch.testing.assert_close(joint, alone, atol=1e-12, rtol=0)
    for mine, theirs in zip(joint_gradients, alone_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma-mixed"])
def test_eager_attention_takes_an_additive_mask(name: str) -> None:
    trees = [Tree([5, 6, 7, 8, 9, 10, 11, 12, 13], [[3, 4, 5], [6, 7]]), Tree([], [[3, 4, 5], [6, 7]])]
    model = decoder(name, "eager")
    joint, alone = model.slots(place_in_rows(trees, [[0, 1]])), model.slots(place_in_rows(separate(trees)))
    torch.testing.assert_close(joint, alone, atol=1e-6, rtol=0)  # eager softmax runs in float32


def test_forgetting_the_sibling_mask_would_show() -> None:
    """The check above has teeth: with NEXT seeing SELF the embedding moves."""
    tree = Tree([5, 6, 7], [[3, 4], [6, 7]])
    model = decoder("llama")
    seen = model.slots(place_in_rows([Tree([*tree.trunk, *tree.branches[0]], [tree.branches[1]])]))[0]
    assert (model.slots(place_in_rows([tree]))[1] - seen).abs().max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_maskable_models_are_recognised(name: str) -> None:
    assert decoder(name).runs_jointly()


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
        MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=2),
    ],
)
def test_alibi_models_run_two_passes(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    with quiet_transformers():
        model = Decoder(AutoModelForCausalLM.from_config(config).eval())
    assert not model.runs_jointly()
    assert model.slots(place_in_rows([Tree([5, 6], [[7, 8]])])).shape == (1, 1, 16)


def test_layout_counts() -> None:
    token_rows = place_in_rows([Tree([1, 2, 3], [[4, 5], [6]]), Tree([7], [[8]])], [[0, 1]])
    np.testing.assert_array_equal(token_rows.ids, [[1, 2, 3, 4, 5, 6, 7, 8]])
    np.testing.assert_array_equal(token_rows.positions, [[0, 1, 2, 3, 4, 3, 0, 1]])
    np.testing.assert_array_equal(token_rows.slots, [[4], [5], [7]])


# torch's own import of its inductor; that nothing is compiled here is meant
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma-mixed"])
def test_attention_in_blocks_sees_what_the_dense_mask_sees(name: str) -> None:
    """FlexAttention, forward only and uncompiled: a CPU has no backward of it."""
    trees = [
        Tree([5, 6, 7, 8, 9, 10, 11, 12, 13], [[3, 4, 5], [6, 7, 8]]),
        Tree([], [[3, 4, 5], [6, 7]]),
        Tree([9] * 30, [[1, 2], [4, 5]]),
    ]
    rows = pack([len(tree) for tree in trees], 40)
    torch.manual_seed(0)
    with quiet_transformers():
        model = Decoder(AutoModelForCausalLM.from_config(CONFIGS[name]).eval())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        dense = model.slots(place_in_rows(trees, rows))
        assert model.attend_in_blocks()
        blocks = model.slots(place_in_rows(trees, rows, 128))
    torch.testing.assert_close(blocks, dense, atol=1e-5, rtol=0)
