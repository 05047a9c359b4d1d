"""Adapters of the ``lora`` and ``qlora`` backends: adding, saving and merging them."""

from __future__ import annotations

from collections.abc import Set
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llara_cli.core.errors import UserError
from llara_cli.model.adapter_checkpoint import save_base
from llara_cli.model.architecture import linear_layers
from llara_cli.model.backends import TrainingSetup
from llara_cli.model.source import ADAPTER, ModelSource
from llara_cli.model.tokenizer import first_line


def adapt(model: PreTrainedModel, fresh: list[int], setup: TrainingSetup) -> Any:
    """The peft model around ``model``: adapters on its linear layers, and the embeddings' rows ``fresh``, in fp32.

    Raises ``UserError`` if peft cannot put an adapter on a layer that ``setup`` names.
    """
    targets = _usual_targets(model, setup) if setup.adapter.targets is None else _chosen_targets(model, setup)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=setup.adapter.rank,
        lora_alpha=setup.adapter.alpha,
        lora_dropout=setup.adapter.dropout,
        target_modules=targets,
        trainable_token_indices=fresh or None,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"`lora.targets={','.join(targets)}`: {first_line(error)} ({_linear_names(model)})") from error
    # sorted, as peft makes a set of the names, whose order differs between processes: equal runs save equal files
    adapted.peft_config["default"].target_modules = sorted(adapted.peft_config["default"].target_modules)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


def _chosen_targets(model: PreTrainedModel, setup: TrainingSetup) -> list[str]:
    """The names given by the user. Raises ``UserError`` for names that no layer has, and for tied embeddings."""
    targets = list(setup.adapter.targets or ())
    found = {name: layer for name, layer in model.named_modules() if name}
    for target in targets:
        layers = [layer for name, layer in found.items() if name == target or name.endswith(f".{target}")]
        if not layers:
            raise UserError(f"`lora.targets={target}`: no layer of that name ({_linear_names(model)})")
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        if tied and any(layer is model.get_input_embeddings() for layer in layers):
            raise UserError(f"`lora.targets={target}`: these embeddings are the LM head's weights too (tied)")
    return targets


def _usual_targets(model: PreTrainedModel, setup: TrainingSetup) -> list[str]:
    """Full names of the linear layers that can have an adapter; a note names those that cannot.

    An adapter replaces a layer, so layers that do more than a linear one (a router of experts) cannot have one.
    """
    layers = linear_layers(model)
    names = set(map(_last, layers))
    refused = {_last(name) for name, layer in layers.items() if not _is_plain(layer)}
    if not _accepts(model, names - refused):
        refused |= {name for name in names - refused if not _accepts(model, {name})}
    if refused:
        told = f"{', '.join(sorted(refused))} left without adapters: peft cannot adapt these layers"
        setup.note(f"{told} ({model.config.model_type})")
    targets = sorted(name for name in layers if _last(name) not in refused)
    if not targets:
        raise UserError(f"no linear layer of {model.config.model_type} can have an adapter: use `backend='full'`")
    return targets


def _linear_names(model: PreTrainedModel) -> str:
    """The last parts of the linear layers' names, for a message."""
    return f"linear layers: {', '.join(sorted(set(map(_last, linear_layers(model)))))}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@torch.no_grad()
def _is_plain(layer: nn.Module) -> bool:
    """Whether a subclass of a linear layer returns one tensor of its output width."""
    if type(layer) in (nn.Linear, Conv1D) or type(layer).__module__.startswith("bitsandbytes"):
        return True
    assert isinstance(layer, nn.Linear)
    found = layer(layer.weight.new_zeros(1, layer.in_features))
    return isinstance(found, Tensor) and found.shape == (1, layer.out_features)


def _accepts(model: PreTrainedModel, last: Set[str]) -> bool:
    """Whether peft accepts layers with these last names as targets; tried on a copy without weights."""
    with torch.device("meta"):
        copy = type(model)(deepcopy(model.config))
    names = [name for name in linear_layers(copy) if _last(name) in last]
    try:
        inject_adapter_in_model(LoraConfig(r=1, target_modules=names), copy)
    except ValueError:
        return False
    return True


def save(
    adapted: Any, source: ModelSource, setup: TrainingSetup, folder: Path, dtype: torch.dtype, quantization: str | None
) -> None:
    """Save the adapter in ``adapter/``, and a merged checkpoint that any tool loads, or a record of its base model."""
    # explicit: else peft asks the hub for the base model's vocabulary
    adapted.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    if not setup.adapter.merge:
        save_base(folder, source, setup, quantization)
        adapted.get_base_model().config.save_pretrained(folder)
        return
    merge(adapted, dtype).save_pretrained(folder)


@torch.no_grad()
def merge(adapted: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Merge the adapters into plain layers: base weight, as the layer uses it, plus adapter, summed in fp32.

    Layer by layer onto the CPU, in ``dtype``: a GPU that holds the model in four bits may not hold it in 16.
    """
    for name, layer in list(adapted.named_modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            adapted.set_submodule(name, _merged(layer, dtype))
    merged: PreTrainedModel = adapted.merge_and_unload()  # the rest: the rows of new tokens
    return merged.to(device="cpu", dtype=dtype)


def _merged(layer: Any, dtype: torch.dtype) -> nn.Linear:
    base = layer.get_base_layer()
    delta = layer.get_delta_weight("default").float()
    weight = base_weight(base).to(delta.device) + delta  # of sharded weights only quantized ones stay on the GPU
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to("cpu", dtype))
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach().to("cpu", dtype))
    return plain


def base_weight(layer: nn.Linear) -> Tensor:
    """The weight (out, in) of a linear layer in fp32, dequantized if necessary."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, state)
    return weight.float()
