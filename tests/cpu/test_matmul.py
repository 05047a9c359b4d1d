"""Products and gradients of a decoder's layers are PyTorch's own, whatever computes and adds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llara_cli.core.workspace import Workspace
from llara_cli.cpu import matmul
from llara_cli.cpu.matmul import lean_training, linear, onednn_is_faster, onednn_sums_faster
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.sequences import Tree, place_in_rows
from llara_cli.model.source import resolve


@pytest.fixture(params=["PyTorch", "oneDNN", "oneDNN but for sums"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What multiplies, also the smallest matrices."""
    if request.param == "PyTorch":
        monkeypatch.setattr(matmul, "onednn_is_faster", lambda: False)
    else:
        request.getfixturevalue("onednn")
    if request.param != "oneDNN":
        monkeypatch.setattr(matmul, "onednn_sums_faster", lambda: False)


@pytest.fixture(params=["llama", "qwen", "neox"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Without biases; with biases and tied embeddings; another family."""
    source = resolve(str(make_model(tmp_path / "model", request.param)), Workspace(tmp_path))
    return load_causal_lm(source, torch.float32).train()


def _gradients(model: PreTrainedModel, *, lean: bool) -> dict[str, Tensor]:
    """Of two forwards of different lengths, one of them over two branches."""
    decoder = Decoder(model)
    if lean:
        decoder.train_lean()
    random = np.random.default_rng(0)
    for length in (19, 30):
        ids = random.integers(0, 300, length)
        tree = Tree(ids[:9].tolist(), [ids[9:15].tolist(), ids[15:].tolist()])
        decoder.slots(place_in_rows([tree])).square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """But for the order of additions, which oneDNN chooses by its release and the processor: of terms of up to ten."""
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-5, atol=3e-5, msg=lambda told, n=name: f"{n}: {told}"
        )


def test_gradients_are_those_of_autograd(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, taken = _gradients(model, lean=False), []
    for function in (matmul._Linear, matmul._Embedding):
        plain = function.apply
        monkeypatch.setattr(function, "apply", lambda *a, f=function, p=plain: (taken.append(f), p(*a))[1])
    mine = _gradients(model, lean=True)
    assert set(taken) == {matmul._Linear, matmul._Embedding}
    _same(mine, theirs)


def test_frozen_weights_get_none(model: PreTrainedModel) -> None:
    frozen = [name for name, _ in model.named_parameters() if "mlp" in name or "embed" in name]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    theirs, mine = (_gradients(model, lean=lean) for lean in (False, True))
    assert theirs
    assert not mine.keys() & set(frozen)
    _same(mine, theirs)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (1, 7), (5, 7), (2, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_pytorch(shape: tuple[int, ...], bias: bool) -> None:
    values, weight, added = torch.randn(shape), torch.randn(3, 7), torch.randn(3) if bias else None
    wanted = functional.linear(values, weight, added)
    torch.testing.assert_close(linear(values, weight, added), wanted)
    torch.testing.assert_close(linear(values, weight.T.contiguous().T, added), wanted)
    if bias:
        for given in (torch.randn(3, 2)[:, 0], torch.ones(1).expand(3), torch.randn(1)):
            torch.testing.assert_close(linear(values, weight, given), functional.linear(values, weight, given))
    halves = linear(values.bfloat16(), weight.bfloat16())
    assert torch.equal(halves, functional.linear(values.bfloat16(), weight.bfloat16()))


def test_gradients_of_later_forwards_are_added_in_place() -> None:
    weight, places = nn.Parameter(torch.ones(2, 3)), []
    for count in (4, 5):
        with lean_training():
            functional.linear(torch.ones(count, 3), weight).sum().backward()
        assert weight.grad is not None
        places.append(weight.grad.data_ptr())
    assert torch.equal(weight.grad, torch.full((2, 3), 9.0))
    assert places[0] == places[1]


def test_no_gradient_of_a_gradient_is_made_up() -> None:
    values, weight = torch.ones(4, 3, requires_grad=True), nn.Parameter(torch.ones(2, 3))
    with lean_training():
        found = functional.linear(values, weight)
    (once,) = torch.autograd.grad(found.square().sum(), [values], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,) * 3,
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_outer_products_are_added_however_the_total_lies(
    shape: tuple[int, int], dtypes: tuple[torch.dtype, ...]
) -> None:
    torch.manual_seed(0)
    weight, left, right = (
        torch.randn(size).to(dtype) for size, dtype in zip((shape, (9, shape[0]), (9, shape[1])), dtypes, strict=True)
    )
    for total in (weight.clone(), weight.T.contiguous().T, _added_to_zeros(weight)):
        kept = total.data_ptr()
        matmul.add_matmul_transposed(total, left, right)
        tolerance = {} if left.dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}  # right is rounded too
        torch.testing.assert_close(total, weight + left.float().T @ right.float(), **tolerance)
        assert total.data_ptr() == kept


def _added_to_zeros(weight: Tensor) -> Tensor:
    """The weight, where sums of its gradients would lie."""
    total = matmul.zeros_for_sum(weight, weight.dtype)
    assert total.shape == weight.shape
    assert not total.any()
    return total.add_(weight)


def test_a_weight_that_was_written_to_is_not_used() -> None:
    values, weight = torch.ones(2, 3, requires_grad=True), nn.Parameter(torch.ones(4, 3))
    with lean_training():
        found = functional.linear(input=values, weight=weight)
    with torch.no_grad():
        weight += 1
    with pytest.raises(RuntimeError, match=r"in place"):
        found.sum().backward()


def test_small_products_are_not_worth_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: list[None] = []
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: bool(asked.append(None)))
    linear(torch.ones(8, 16), torch.ones(4, 16))
    assert not asked
    linear(torch.ones(1024, 1024), torch.ones(32, 1024))
    assert asked


def test_encoding_multiplies_so_too(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    token_rows = place_in_rows([Tree(list(range(9)), [[3, 4]])])
    wanted = model.get_decoder()(torch.from_numpy(token_rows.ids)).last_hidden_state[0, -1]
    taken: list[Tensor] = []
    multiply = matmul.linear
    monkeypatch.setattr(matmul, "linear", lambda *given: (taken.append(given[1]), multiply(*given))[1])
    with torch.no_grad():
        torch.testing.assert_close(Decoder(model).hidden(token_rows)[-1], wanted, rtol=1e-4, atol=1e-5)
    linear = {id(module.weight) for module in model.get_decoder().modules() if isinstance(module, nn.Linear)}
    assert {id(weight) for weight in taken} == linear


def test_onednn_is_for_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    for amd in (True, False):
        monkeypatch.setattr(matmul, "processor_is_amd", lambda amd=amd: amd)
        monkeypatch.setattr(matmul, "onednn_is_faster", onednn_is_faster)
        for capability in ("AVX2", "AVX512"):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
            onednn_is_faster.cache_clear()
            onednn_sums_faster.cache_clear()
            assert onednn_is_faster() == (amd and there)
            assert onednn_sums_faster() == (amd and there and capability == "AVX512")
    onednn_is_faster.cache_clear()
    onednn_sums_faster.cache_clear()


@pytest.mark.parametrize("padding", [None, 3, -7])
def test_the_padding_of_a_table_is_not_learnt(padding: int | None) -> None:
    ids = torch.tensor([[3, 1, 3, 0, 1]])
    gradients = []
    for mode in (nullcontext(), lean_training()):
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
        with lean_training():
            functional.linear(torch.ones(4, 3), weight).sum().backward()
        (seen,) = weight.seen
        assert torch.equal(seen.grad if seen is weight else seen, torch.full((2, 3), 4.0))
        assert torch.equal(weight.grad, torch.full((2, 3), 4.0))


def test_views_and_other_dtypes_are_left_to_autograd() -> None:
    weight, vector = nn.Parameter(torch.ones(2, 3)), torch.ones(3)
    with lean_training():
        functional.linear(vector, weight).sum().backward()
        functional.linear(vector[None], weight * 2).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            functional.linear(vector[None], weight).sum().backward()
        functional.embedding(torch.tensor([0, 1]), weight, sparse=True).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad.to_dense(), torch.full((2, 3), 5.0))


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"padding_idx": -2}])
def test_options_of_a_table_are_pytorchs(option: dict[str, Any]) -> None:
    found = []
    for mode in (nullcontext(), lean_training()):
        weight = nn.Parameter(torch.arange(6.0).view(2, 3).clone())
        with mode:
            functional.embedding(torch.tensor([0, 1, 0]), weight, **option).sum().backward()
        assert weight.grad is not None
        found.append((weight.detach(), weight.grad))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_autocast_is_heeded() -> None:
    weight, values = nn.Parameter(torch.ones(2, 3)), torch.ones(4, 3)
    with torch.no_grad(), matmul.CpuKernels(), torch.autocast("cpu", torch.bfloat16):
        assert functional.linear(values, weight).dtype == torch.bfloat16
