"""A private operation of PyTorch is used only where it gives what plain PyTorch gives; else the user is warned once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.core.reporter import LlaraWarning
from llara_cli.cpu import attention, linear, matmul
from llara_cli.cpu.attention import FLASH, Blocks
from llara_cli.cpu.kernel import Kernel, check_flash, check_linear

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def gone(*_: object) -> Any:
    raise AttributeError("no such operation")


def wrong(values: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
    """A product without its bias."""
    return functional.linear(values, weight)


def wrong_gradients(*_: object, **__: object) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 2, 3, 4),) * 3


@pytest.mark.parametrize(
    ("find", "check", "reason"),
    [
        (gone, check_linear, "no such operation"),
        (lambda: wrong, check_linear, "not close"),
        (gone, check_flash, "no such operation"),
        (
            lambda: (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, wrong_gradients),
            check_flash,
            "not close",
        ),
    ],
)
def test_what_is_not_there_or_wrong_is_not_used_and_said_once(
    find: Callable[[], Any], check: Callable[[Any], None], reason: str
) -> None:
    kernel = Kernel("the kernel", find, check)
    with pytest.warns(LlaraWarning, match=f"the kernel does not work with PyTorch .*{reason}.*plain PyTorch"):
        assert kernel.op is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel.op is None


def test_the_kernels_of_this_pytorch_pass_and_leave_its_generator_alone() -> None:
    state = torch.get_rng_state()
    with torch.inference_mode():  # wherever they are first used
        assert Kernel("linear", lambda: torch.ops.mkldnn._linear_pointwise, check_linear).op is not None
        assert Kernel("attention", lambda: FLASH.op, check_flash).op is not None
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.usefixtures("onednn")
def test_products_go_on_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weight, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    monkeypatch.setattr(matmul, "ONEDNN_LINEAR", Kernel("oneDNN", lambda: wrong, check_linear))
    with pytest.warns(LlaraWarning, match="oneDNN"):
        assert torch.equal(linear(values, weight, bias), functional.linear(values, weight, bias))


def test_attention_goes_on_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    width = attention.LEAST_WIDTH
    query = torch.randn(1, 2, width, 4)
    assert Blocks().suiting(query, query, query, None, True) is not None
    monkeypatch.setattr(attention, "FLASH", Kernel("attention", gone, check_flash))
    with pytest.warns(LlaraWarning, match="attention"):
        assert Blocks().suiting(query, query, query, None, True) is None
