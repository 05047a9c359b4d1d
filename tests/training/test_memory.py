"""What is counted of the memory that backward needs, and what is chosen by it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig

from llara_cli.model.backbone import Backbone
from llara_cli.training import memory
from llara_cli.training.memory import Forwards, Kept, choose_forwards, recomputed

GB = 10**9
SEVEN = Kept(fixed=0, layer=0, token=50_000, layer_token=140_000, recomputed_token=8_192)
"""About a Llama of 7 B in bf16, of 32 layers."""


def llama(layers: int) -> Backbone:
    config = LlamaConfig(**(SHAPE | {"num_hidden_layers": layers}), num_key_value_heads=2, vocab_size=400)
    return Backbone(AutoModelForCausalLM.from_config(config).train())


@pytest.mark.parametrize("context", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["fp32", "bf16"])
def test_what_shallow_models_keep_tells_what_a_deep_one_keeps(context: Any) -> None:
    kept = memory.count_kept(llama, context)
    rows, layers = 5, 6
    tokens = rows * memory.TRIAL_TOKENS
    found = memory._kept_bytes(llama(layers), rows, context)
    assert found == kept.fixed + layers * kept.layer + tokens * (kept.token + layers * kept.layer_token)
    deep = llama(layers)
    deep.recompute_in_backward()
    found = memory._kept_bytes(deep, rows, context)
    # a layer that is computed again keeps no weight in the compute dtype either
    assert found <= kept.fixed + layers * kept.layer + tokens * (kept.token + layers * kept.recomputed_token)
    assert found >= kept.fixed + tokens * layers * kept.recomputed_token


@pytest.mark.parametrize(
    ("free", "chosen"),
    [(85 * GB, Forwards(16384, 0)), (25 * GB, Forwards(5120, 0)), (12 * GB, Forwards(4096, 2)),
     (5 * GB, Forwards(10240, 1)), (1 * GB, Forwards(2048, 1)), (0, Forwards(1024, 1))],
)  # fmt: skip
def test_large_forwards_come_before_recomputation_and_that_before_small_ones(free: float, chosen: Forwards) -> None:
    assert choose_forwards(free, SEVEN, 32, longest=512) == chosen


@given(
    st.floats(0, 2e11), st.integers(1, 80), st.integers(1, 8192), st.none() | st.integers(1, 32768),
    st.sampled_from([None, True, False]),
)  # fmt: skip
def test_what_is_chosen_fits_where_anything_does(
    free: float, layers: int, longest: int, tokens: int | None, recompute: bool | None
) -> None:
    chosen = choose_forwards(free, SEVEN, layers, longest=longest, tokens=tokens, recompute=recompute)
    least = SEVEN.needed(max(tokens or memory.STEP, longest), layers, 0 if recompute is False else 1)
    assert SEVEN.needed(max(chosen.tokens, longest), layers, chosen.every) <= max(free, least)
    assert tokens in (None, chosen.tokens)
    assert recompute in (None, chosen.every == 1)


def test_every_number_of_layers_that_can_be_spread_evenly_is_tried() -> None:
    assert [recomputed(7, every) for every in memory._ways(7)] == [0, 1, 2, 3, 4, 7]
