"""The rivals of the benchmarks take the gradients that ours take, and compute where the model lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rivals import Authors, TwoPasses
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llara_cli.model.batching import Batching
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import PromptIds
from llara_cli.training.pretext import Example, PretextObjective

PROMPTS = {
    "paper": PromptIds((1,), {"self": (5, 6, 2), "next": (5, 7, 8, 2)}, 1, 1),
    "released": PromptIds((1,), {"self": (5, *range(10, 18)), "next": (6, 7, *range(20, 28))}, 8, 1),
}
RIVALS: list[tuple[Recipe, Callable[[Decoder], Authors | TwoPasses]]] = [
    (RELEASED, lambda decoder: Authors(decoder, PROMPTS["released"], 2)),
    (PAPER, lambda decoder: TwoPasses(decoder, PROMPTS["paper"], 2)),
    (PAPER, lambda decoder: TwoPasses(decoder, PROMPTS["paper"], 2, by_length=True)),
]
rivals = pytest.mark.parametrize(("recipe", "rival"), RIVALS, ids=["authors", "two passes", "by length"])


def decoder_of(model: Path) -> Decoder:
    """The tiny model, ready to train."""
    return Decoder(load_causal_lm(ModelSource("tiny", str(model)), torch.float32).train())


def examples(lengths: Sequence[int] = (9, 4, 9, 9)) -> list[Example]:
    """Texts of random tokens, each with the next one's as its second target."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(30, 300, length) for length in (*lengths, 6)]
    return [Example(text, {"self": np.unique(text), "next": np.unique(after)}) for text, after in pairwise(texts)]


def gradient(decoder: Decoder) -> torch.Tensor:
    """All weights' gradients, flat."""
    return torch.cat([weight.grad.flatten() for weight in decoder.model.parameters() if weight.grad is not None])


@rivals
def test_a_rival_takes_our_gradients(
    tiny_model: Path, recipe: Recipe, rival: Callable[[Decoder], Authors | TwoPasses]
) -> None:
    ours, theirs = decoder_of(tiny_model), decoder_of(tiny_model)
    loss = PretextObjective(ours, recipe, PROMPTS[recipe.name], Batching("bucketed", 4096, 256)).backward(examples())
    assert rival(theirs).backward(examples()) == pytest.approx(loss.loss, rel=1e-4)
    torch.testing.assert_close(gradient(theirs), gradient(ours), rtol=1e-3, atol=1e-6)


class OneDevice(TorchDispatchMode):
    """Refuses what computes with tensors of two devices, as a GPU would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        devices = {one.device for one in flat if one.dim() > 0 and func is not torch.ops.aten.copy_.default}
        assert len(devices) <= 1, f"{func}: {devices}"
        return func(*args, **(kwargs or {}))


@rivals
def test_a_rival_computes_where_the_model_lies(
    tiny_model: Path, recipe: Recipe, rival: Callable[[Decoder], Authors | TwoPasses]
) -> None:
    """Every forward and backward on a device that is not the CPU; only the loss' value cannot be read there."""
    decoder = Decoder(decoder_of(tiny_model).model.to("meta"))
    decoder.model.set_attn_implementation("eager")  # for the other transformers reads the mask's values
    with OneDevice(), pytest.raises(RuntimeError, match="meta tensor"):
        rival(decoder).backward(examples((9, 4, 7, 5)))
    assert all(weight.grad is not None for weight in decoder.model.parameters())
