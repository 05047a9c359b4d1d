"""What backward makes again is, to the bit, what it would have kept; and it does keep less."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from llara_cli.core.workspace import Workspace
from llara_cli.cpu.matmul import lean_training
from llara_cli.cpu.recompute import RecomputedTensors, Saved, SavedTensor
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.sequences import Tree, place_in_rows
from llara_cli.model.source import resolve

FROZEN = nn.Parameter(torch.linspace(-1, 1, 8), requires_grad=False)
Gated = Callable[[Tensor, Tensor], Tensor]


def _gated(gate: Tensor, other: Tensor) -> Tensor:
    return functional.silu(gate) * other


def _gradients(function: Gated, *, lean: bool) -> list[Tensor | None]:
    """Of both operands and of a matrix behind them."""
    torch.manual_seed(0)
    given = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    matrix = nn.Parameter(torch.randn(4, 8))
    with lean_training() if lean else nullcontext():
        made = functional.linear(function(*(operand * 1.5 for operand in given)), matrix)
    made.sum().backward()
    return [*(operand.grad for operand in given), matrix.grad]


@pytest.mark.parametrize(
    "function",
    [
        _gated,
        lambda gate, other: functional.gelu(gate, approximate="tanh") * other,
        lambda gate, other: functional.silu(gate) + functional.silu(gate) * other,
        lambda gate, other: (gate * other) * (gate * other) * gate,
        lambda gate, other: torch.mul(gate, other) * 2.0,
        lambda gate, other: gate * gate.detach() * other,
        lambda gate, other: gate * other.sum(dim=-1, keepdim=True),
        lambda gate, other: (gate * other).reshape(5, 8) * other,
        lambda gate, other: (gate * other).add_(1.0) * gate,
        lambda gate, other: (gate * other).mul_(other) * gate,
        lambda gate, other: functional.silu(gate, inplace=True) * other,
        lambda gate, other: FROZEN * (gate * other) * gate,
    ],
)
def test_gradients_are_the_same_to_the_bit(function: Gated) -> None:
    theirs, mine = (_gradients(function, lean=lean) for lean in (False, True))
    for a, b in zip(mine, theirs, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_a_backward_may_be_repeated() -> None:
    gate = torch.randn(3, 4, requires_grad=True)
    with lean_training():
        loss = functional.linear(_gated(gate * 2, gate * 3), nn.Parameter(torch.ones(2, 4))).sum()
    (first,) = torch.autograd.grad(loss, [gate], retain_graph=True)
    (second,) = torch.autograd.grad(loss, [gate])
    assert torch.equal(first, second)


@pytest.mark.parametrize("function", [_gated, lambda gate, other: gate.square() + other])
def test_what_was_written_to_is_not_used(function: Gated) -> None:
    gate = torch.randn(3, 4, requires_grad=True) * 1
    with lean_training():
        loss = functional.linear(function(gate, gate * 3), nn.Parameter(torch.ones(2, 4))).sum()
    with torch.no_grad():
        gate += 1
    with pytest.raises(RuntimeError, match=r"in ?place"):
        loss.backward()


def test_a_forward_without_backward_leaves_nothing() -> None:
    gate = torch.randn(3, 4, requires_grad=True)
    with lean_training():
        loss = functional.linear(_gated(gate * 2, gate * 3).exp(), nn.Parameter(torch.ones(2, 4))).sum()
    reference = weakref.ref(gate)
    del gate, loss
    assert reference() is None


def test_half_of_a_decoder_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(str(make_model(tmp_path / "model")), Workspace(tmp_path))
    decoder = Decoder(load_causal_lm(source, torch.float32).train())
    token_rows = place_in_rows([Tree(list(range(60)), [[3, 4]])])
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        plain = decoder.slots(token_rows)
    before = sum(kept.values())

    def pack(self: RecomputedTensors, tensor: Tensor, packed: Any = RecomputedTensors.pack) -> Saved:
        found: Saved = packed(self, tensor)
        for part in _tensors(found):
            count(part)
        return found

    monkeypatch.setattr(RecomputedTensors, "pack", pack)
    kept.clear()
    decoder.train_lean()
    assert torch.equal(decoder.slots(token_rows), plain)
    assert sum(kept.values()) < 0.65 * before


def _tensors(kept: Saved) -> list[Tensor]:
    """All tensors that are kept for one."""
    if isinstance(kept, SavedTensor):
        return [kept.tensor()]
    return [tensor for operand in kept.operands for tensor in _tensors(operand)]
