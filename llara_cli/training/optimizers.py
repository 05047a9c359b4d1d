"""Optimizers: AdamW, and variants that take less memory (bitsandbytes, torchao)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from llara_cli.core.registry import missing_extra
from llara_cli.training.config import OptimizerConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8
STATE_BYTES = {"adamw": 8.0, "adamw-8bit": 2.1, "paged-adamw": 0.0, "paged-adamw-8bit": 0.0}
"""Bytes of optimizer state per weight on the device; paged optimizers may move it to the CPU."""


def make_optimizer(weights: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW for ``weights``, whose gradients are summed in fp32 from now on.

    Raises ``UserError`` if the library that the chosen variant needs is missing.
    """
    assert config.learning_rate is not None
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": BETAS,
        "eps": EPSILON,
        "weight_decay": config.weight_decay,
    }
    if config.weights == "bf16":
        return _rounding(weights, options)
    if config.name == "adamw":
        return torch.optim.AdamW(weights, fused=True, **options)
    lean: torch.optim.Optimizer = _lean(config.name)(weights, **options)
    return lean


def uncompiled_on_cpu(device: torch.device) -> AbstractContextManager[Any]:
    """Context of an optimizer step: without torchao's compilation, which on a CPU takes longer than it saves."""
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager if device.type == "cpu" else nullcontext()


def _lean(name: str) -> Any:
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise missing_extra(f"bitsandbytes, which `optimizer.name='{name}'` needs,", "qlora") from error
    classes = {"adamw-8bit": "AdamW8bit", "paged-adamw": "PagedAdamW32bit", "paged-adamw-8bit": "PagedAdamW8bit"}
    return getattr(optim, classes[name])


def _rounding(weights: Sequence[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    """8-bit AdamW with stochastic rounding of bf16 weights, so that small updates are not lost."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise missing_extra("torchao, which `optimizer.weights='bf16'` needs,", "torchao") from error
    for weight in weights:
        weight.grad_dtype = torch.float32  # summed in bf16, the gradients of single forwards would be lost
    optimizer: torch.optim.Optimizer = AdamW8bit(weights, bf16_stochastic_round=True, **options)
    return optimizer
