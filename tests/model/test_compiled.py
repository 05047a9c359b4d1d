"""Compiled layers compute what they compute uncompiled, and are compiled for few shapes, whatever the texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from test_joint_pass import CONFIGS
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM
from transformers.integrations.flex_attention import WrappedFlexAttention

from llara_cli.model.batching import Batching
from llara_cli.model.block_mask import WIDTHS
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.sequences import TokenRows, Tree, place_some

BATCHES = 10
MOST = 3
"""Graphs: for the first shape, for others of as many rows, for any number of rows."""

pytestmark = [  # torch's own, as it compiles
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Nothing that others compiled counts."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def layouts(batching: Batching) -> Iterator[TokenRows]:
    """Of many batches, hardly any like another."""
    draw = np.random.default_rng(0)
    for _ in range(BATCHES):
        trees = [Tree(draw.integers(5, 90, n), [[5, 6], [7, 8, 9]]) for n in draw.integers(1, 50, draw.integers(1, 16))]
        for rows in batching.forwards([len(tree) for tree in trees]):
            yield place_some(trees, rows, batching.multiple)[1]


def decoder(name: str) -> Decoder:
    """A tiny random model."""
    torch.manual_seed(0)
    with quiet_transformers():
        return Decoder(AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name])).train())


def hidden_and_norm(model: Decoder, token_rows: TokenRows) -> tuple[Tensor, Tensor]:
    """Hidden states, and the norm of the gradient of their squares."""
    model.model.zero_grad()
    hidden = model.slots(token_rows)
    hidden.square().sum().backward()
    gradients = [w.grad.norm() for w in model.model.parameters() if w.grad is not None]
    return hidden.detach(), torch.stack(gradients).norm()


@pytest.mark.parametrize(
    ("name", "attention", "layout", "recompute", "compiler"),
    [("llama", "dense", "packed", False, "eager"), ("llama", "dense", "bucketed", False, "eager"),
     ("qwen", "varlen", "packed", False, "aot_eager"), ("llama", "varlen", "packed", True, "eager"),
     ("gemma-mixed", "varlen", "packed", False, "eager")],
)  # fmt: skip
def test_layers_are_compiled_for_few_shapes(
    name: str, attention: str, layout: str, recompute: bool, compiler: str
) -> None:
    compiled, plain = decoder(name), decoder(name)
    for model in (compiled, plain):
        model.use_attention(attention)
    if recompute:
        compiled.recompute_in_backward()
    compiled.compile_layers(compiler)
    kinds = 1 + (name == "gemma-mixed")
    for each in layouts(compiled.batching(layout, 512)):
        for mine, theirs in zip(hidden_and_norm(compiled, each), hidden_and_norm(plain, each), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not counters["graph_break"]
    assert 0 < counters["stats"]["unique_graphs"] <= MOST * kinds


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(("name", "kinds"), [("llama", 1), ("gemma-mixed", 2)])
def test_attention_in_blocks_is_compiled_for_few_shapes(monkeypatch: pytest.MonkeyPatch, name: str, kinds: int) -> None:
    """transformers compiles it with a compiler that takes minutes here: another takes its place."""
    model, dense = decoder(name), decoder(name)
    for each in (model, dense):
        each.model.eval()
    assert model.attend_in_blocks()
    holder = WrappedFlexAttention(training=False)
    monkeypatch.setattr(holder, "_compiled_flex_attention", torch.compile(flex_attention, backend="eager"))
    widths = set()
    with torch.no_grad():
        for token_rows in layouts(model.batching("packed", 2048)):
            widths.add(token_rows.ids.shape)
            torch.testing.assert_close(model.slots(token_rows), dense.slots(token_rows), atol=1e-5, rtol=0)
    assert len(widths) <= WIDTHS
    assert 0 < counters["stats"]["unique_graphs"] <= MOST * kinds


def test_shapes_that_need_a_graph_each_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as rows have widths, and more than torch takes by itself before it gives up compiling."""
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    shapes: list[torch.Size] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        shapes.append(next(each.shape for each in inputs if isinstance(each, Tensor) and each.dim() == 3))
        return graph.forward

    model = decoder("llama")
    model.compile_layers(compiler)
    for width in range(20, 32):
        model.hidden(place_some([Tree([5] * width, [])], [[0]])[1])
    assert len(shapes) == 12


def test_what_is_tried_on_a_few_tokens_is_not_compiled() -> None:
    model = decoder("llama")
    model.compile_layers("eager")
    assert model.runs_jointly()
    assert counters["stats"]["unique_graphs"] == 0
