"""Finds the decoder within a causal language model, and checks that it is one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llara_cli.core.errors import UserError, is_out_of_memory
from llara_cli.model.tokenizer import first_line

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)
"""Exceptions of forwards that take other inputs than token ids."""

LONGROPE = ("longrope", "su")
"""LongRoPE's names in configurations: transformers', and that of Phi-3's own code."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """The command-line name of a dtype."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def find_body(model: PreTrainedModel) -> nn.Module:
    """The module that turns token ids into last hidden states.

    It is what transformers says (``get_decoder``), unless that is the model itself or a layer of its head.
    Raises ``UserError`` if there is none.
    """
    parts: tuple[nn.Module, ...] = (model.get_decoder(), model.base_model, *model.children())
    for part in parts:
        if part is not model and "input_ids" in inspect.signature(part.forward).parameters:
            return part
    raise UserError(f"{model.config.model_type}: no decoder that takes token ids was found in {type(model).__name__}")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Linear layers by name (GPT-2's ``Conv1D`` included), without the vocabulary projection."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def decoder_layers(body: nn.Module, config: Any) -> nn.ModuleList:
    """The list of a body's layers. Raises ``UserError`` if there is none."""
    for part in body.modules():
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers:
            return part
    raise UserError(f"{config.model_type}: no list of its layers was found in {type(body).__name__}")


def width(config: Any) -> int:
    """Width of the hidden states that a decoder returns: OPT projects them to its embeddings' width."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def rope_switch(config: Any) -> int | None:
    """The number of positions above which a decoder uses other rotary factors (LongRoPE).

    The longest sequence of a forward decides. None: the factors are always the same.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [part for part in rope.values() if isinstance(part, dict)]
    for part in [rope, *by_layer]:
        if part.get("rope_type", part.get("type")) in LONGROPE:
            own = getattr(config, "original_max_position_embeddings", None)
            found = part.get("original_max_position_embeddings") or own or config.max_position_embeddings
            return int(found)
    return None


def compute_dtype(values: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, else the dtype of ``values``."""
    kind = values.device.type
    if not torch.is_autocast_enabled(kind):
        return values.dtype
    found = torch.get_autocast_dtype(kind)
    assert isinstance(found, torch.dtype)
    return found


def tolerance(values: Tensor) -> float:
    """Largest relative difference of results that differ by rounding only."""
    return 1e-4 if values.dtype in (torch.float32, torch.float64) else 5e-2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def reason(error: Exception) -> str:
    """The error of a failed forward in one line. An out-of-memory error is raised again."""
    if is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {first_line(error)}"
