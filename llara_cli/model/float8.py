"""Training in float8: the decoder's linear layers multiply 8-bit numbers, each row scaled by its largest value."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from llara_cli.core.errors import UserError
from llara_cli.core.registry import missing_extra

MULTIPLE = 16
"""The kernels take layers whose widths are multiples of this."""


def refuse_without_float8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ``UserError`` for a device that cannot multiply in float8, and for another compute dtype than bf16."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(f"`execution.compute='float8'` needs a GPU of compute capability 8.9 or above, not {device}")
    if dtype != torch.bfloat16:
        raise UserError(
            "`execution.compute='float8'` goes with `dtype='bf16'`: products of float8 rows come in no other"
        )


def compute_in_float8(body: nn.Module, *, emulate: bool = False) -> None:
    """Let a body's linear layers multiply in float8; the weights themselves do not change.

    ``emulate``: on any device, slowly, what a GPU with float8 would compute. Raises ``UserError`` if torchao is not
    installed, or no layer is of a shape that the kernels take.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise missing_extra("torchao, which `execution.compute='float8'` needs,", "torchao") from error
    if not any(_suits(layer) for layer in body.modules()):
        raise UserError(f"`execution.compute='float8'`: no linear layer has widths that are multiples of {MULTIPLE}")
    # the weights' gradients are sums over the tokens of a forward, of which there may be any number
    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(body, config=config, module_filter_fn=lambda layer, name: _suits(layer))


def _suits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0
