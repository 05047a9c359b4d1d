"""Gradients that are added where they are summed up are the gradients that autograd would have made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llara_cli.model import gradient_sums
from llara_cli.model.backbone import Backbone
from llara_cli.model.gradient_sums import SummedInPlace
from llara_cli.model.layout import Tree, lay_out
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.source import resolve
from llara_cli.workspace import Workspace


@pytest.fixture(params=["llama", "qwen", "neox"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Without biases; with biases and tied embeddings; another family."""
    source = resolve(str(make_model(tmp_path / "model", request.param)), Workspace(tmp_path))
    return load_causal_lm(source, torch.float32).train()


def _gradients(model: PreTrainedModel, *, in_place: bool) -> dict[str, Tensor]:
    """Of two forwards of different lengths, one of them over two branches."""
    backbone = Backbone(model)
    if in_place:
        backbone.sum_gradients_in_place()
    random = np.random.default_rng(0)
    for length in (19, 30):
        ids = random.integers(0, 300, length)
        tree = Tree(ids[:9].tolist(), [ids[9:15].tolist(), ids[15:].tolist()])
        backbone.slots(lay_out([tree])).square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-5, atol=1e-5, msg=lambda told, n=name: f"{n}: {told}"
        )


def test_gradients_are_those_of_autograd(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, taken = _gradients(model, in_place=False), []
    for function in (gradient_sums._Linear, gradient_sums._Embedding):
        plain = function.apply
        monkeypatch.setattr(function, "apply", lambda *a, f=function, p=plain: (taken.append(f), p(*a))[1])
    mine = _gradients(model, in_place=True)
    assert set(taken) == {gradient_sums._Linear, gradient_sums._Embedding}
    _same(mine, theirs)


def test_frozen_weights_get_none(model: PreTrainedModel) -> None:
    frozen = [name for name, _ in model.named_parameters() if "mlp" in name or "embed" in name]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    theirs, mine = (_gradients(model, in_place=in_place) for in_place in (False, True))
    assert theirs
    assert not mine.keys() & set(frozen)
    _same(mine, theirs)


@pytest.mark.parametrize("padding", [None, 3, -7])
def test_the_padding_of_a_table_is_not_learnt(padding: int | None) -> None:
    ids = torch.tensor([[3, 1, 3, 0, 1]])
    gradients = []
    for mode in (nullcontext(), SummedInPlace()):
        table = nn.Embedding(10, 4, padding_idx=padding, _weight=torch.arange(40.0).view(10, 4))
        with mode:
            table(ids).square().sum().backward()
        gradients.append(table.weight.grad)
    assert gradients[0] is not None
    assert torch.equal(*gradients)
    assert (padding is not None) == bool((gradients[0][3] == 0).all())


def _hooked() -> Iterator[nn.Parameter]:
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        weight = nn.Parameter(torch.ones(2, 3))
        weight.seen = []
        getattr(weight, register)(lambda value, seen=weight.seen: seen.append(value))
        yield weight


def test_hooks_of_a_weight_are_called() -> None:
    for weight in _hooked():
        with SummedInPlace():
            functional.linear(torch.ones(4, 3), weight).sum().backward()
        assert len(weight.seen) == 1
        assert torch.equal(weight.grad, torch.full((2, 3), 4.0))


def test_views_and_other_dtypes_are_left_to_autograd() -> None:
    weight, vector = nn.Parameter(torch.ones(2, 3)), torch.ones(3)
    with SummedInPlace():
        functional.linear(vector, weight).sum().backward()
        functional.linear(vector[None], weight * 2).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            functional.linear(vector[None], weight).sum().backward()
        functional.embedding(torch.tensor([0, 1]), weight, sparse=True).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad.to_dense(), torch.full((2, 3), 5.0))
