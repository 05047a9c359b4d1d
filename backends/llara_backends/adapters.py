"""What the training backends with adapters share: putting them in, saving them, merging them into plain layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from llara_cli.model.adapted import save_base
from llara_cli.model.source import ADAPTER, ModelSource
from llara_cli.protocols import TrainingSetup


def adapt(model: PreTrainedModel, fresh: list[int], setup: TrainingSetup) -> Any:
    """The peft model around ``model``: adapters on all linear layers, and the embeddings' rows ``fresh``, in fp32."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=setup.adapter.rank,
        lora_alpha=setup.adapter.alpha,
        lora_dropout=setup.adapter.dropout,
        target_modules="all-linear",
        trainable_token_indices=fresh or None,
    )
    adapted = get_peft_model(model, config)
    # peft makes a set of the names, whose order differs from process to process: equal runs save equal files
    adapted.peft_config["default"].target_modules = sorted(adapted.peft_config["default"].target_modules)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


def save(
    adapted: Any, source: ModelSource, setup: TrainingSetup, folder: Path, dtype: torch.dtype, quantization: str | None
) -> None:
    """The adapter under ``adapter/``; and a merged checkpoint that any tool loads, or what the adapter was made on."""
    # said outright: peft would ask the hub whether the base model has as many rows
    adapted.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    if not setup.adapter.merge:
        save_base(folder, source, setup, quantization)
        adapted.get_base_model().config.save_pretrained(folder)
        return
    merge(adapted, dtype).save_pretrained(folder)


@torch.no_grad()
def merge(adapted: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Each layer's base weight, as the layer computes with it, plus its adapter, summed in fp32; plain layers again.

    Layer by layer onto the CPU, in ``dtype``: a card that holds the model in four bits could not hold it whole.
    """
    for name, layer in list(adapted.named_modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            adapted.set_submodule(name, _merged(layer, dtype))
    merged: PreTrainedModel = adapted.merge_and_unload()  # what is left: the rows of new tokens
    return merged.to(device="cpu", dtype=dtype)


def _merged(layer: Any, dtype: torch.dtype) -> nn.Linear:
    base = layer.get_base_layer()
    weight = base_weight(base) + layer.get_delta_weight("default").float()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to("cpu", dtype))
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach().to("cpu", dtype))
    return plain


def base_weight(layer: nn.Linear) -> Tensor:
    """The weight (out, in) that a linear layer computes with, in fp32; a quantised one is dequantised."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, state)
    return weight.float()
