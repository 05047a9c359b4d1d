"""In what a model computes where nothing is said: by what the device can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llara_cli.model.decoder import choose_dtype


@pytest.mark.parametrize(("generation", "expected"), [(7, torch.float32), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_a_gpu_that_emulates_bf16_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, generation: int, expected: torch.dtype
) -> None:
    """PyTorch counts cards before compute capability 8 as having bf16, unless asked for more than an emulation."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert torch.cuda.is_bf16_supported()
    assert choose_dtype("auto", torch.device("cuda")) == expected
    assert choose_dtype("bf16", torch.device("cuda")) == torch.bfloat16
