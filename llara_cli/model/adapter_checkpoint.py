"""Models saved as an adapter only (``--no-merge``): merged into their base when loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from llara_cli.core.artifacts import read_json, write_atomically
from llara_cli.core.errors import UserError, is_out_of_memory
from llara_cli.core.registry import missing_extra
from llara_cli.data.text_files import one_line
from llara_cli.model.architecture import linear_layers
from llara_cli.model.backends import TrainingSetup
from llara_cli.model.checkpoint import listed, tensors
from llara_cli.model.source import BASE, PEFT_CONFIG, PEFT_WEIGHTS, ModelSource, hub_file, resolve_outside

NF4 = "nf4"
_RECORDED = {"location", "beside", "gguf_file", "fingerprint", "dtype", "new_tokens", "seed", "quantization"}


def save_base(folder: Path, source: ModelSource, setup: TrainingSetup, quantization: str | None) -> None:
    """Record the base of an adapter: where it is, its fingerprint, and its quantization."""
    record = {
        "location": _location(source),
        "beside": _beside(folder, source),
        "gguf_file": source.gguf_file,
        "fingerprint": source.fingerprint(),
        "dtype": str(setup.dtype).removeprefix("torch."),
        "new_tokens": list(setup.new_tokens),
        "seed": setup.seed,
        "quantization": quantization,
    }
    write_atomically(folder / BASE, json.dumps(record, indent=1) + "\n")


def _location(source: ModelSource) -> str:
    """A hub id, or the path of a folder."""
    return str(Path(source.location).resolve()) if source.is_local else source.location


def _beside(folder: Path, source: ModelSource) -> str | None:
    """The base's name if it lies beside the adapter, in the same workspace: that may be moved as a whole."""
    place = Path(source.location).resolve()
    return place.name if source.is_local and place.parent == folder.resolve().parent else None


def base_of(source: ModelSource) -> tuple[ModelSource, dict[str, Any]]:
    """Resolve the base of an adapter folder; return it and its record.

    Raises ``LlaraError`` if that is damaged, and ``UserError`` where it is not what this version reads, or where the
    base is gone.
    """
    folder = Path(source.location)
    record = read_json(folder / BASE)
    if _RECORDED - record.keys() or record["quantization"] not in (None, NF4):
        raise UserError(
            f"{Path(source.path) / BASE}: this version cannot read what it says about the adapter's base model"
        )
    beside = folder.resolve().parent / Path(record["beside"] or "").name
    location = str(beside) if record["beside"] and beside.is_dir() else record["location"]
    place = str(Path(location) / record["gguf_file"]) if record["gguf_file"] else location
    if Path(location).is_absolute() and not Path(place).exists():
        raise UserError(f"{source.path}: an adapter whose base model is gone: no {place}")
    base = resolve_outside(place, source.remote_code)
    return replace(base, name=source.name, saved_recipe=source.saved_recipe), record


def refuse_changed(source: ModelSource, base: ModelSource, fingerprint: str) -> None:
    """Raise ``UserError`` if the base is not the one, by its fingerprint, that the adapter was trained on."""
    if base.fingerprint() != fingerprint:
        raise UserError(f"{source.path}: an adapter whose base model has changed since: {base.path}")


def put_together(model: PreTrainedModel, folder: Path, quantization: str | None) -> PreTrainedModel:
    """The base, with its new tokens, and the adapter in ``folder`` as one plain model in fp32.

    Raises ``UserError`` for an adapter that is missing, damaged, made for a model of another shape, not whole, or of a
    kind that cannot be merged into a model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # takes seconds to import

    names = set(_shapes(folder))
    if quantization == NF4:
        _round_to_nf4(model)
    model.float()
    _refuse_unmergeable(model, folder, names)
    prefix = model.base_model_prefix
    whole = any(name.startswith(f"base_model.model.{prefix}.") for name in names) or not hasattr(model, prefix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of missing weights, which are an error below
            # embedders are trained without the vocabulary projection
            adapted = PeftModel.from_pretrained(model if whole else getattr(model, prefix), folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: cannot load the adapter: {one_line(error)}") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if absent := wanted - names:
        raise UserError(f"{folder}: the adapter lacks weights that its configuration names: {listed(absent)}")
    own = _embedding_names(model)  # peft may save these whole, beside the adapter
    if unused := {name for name in names - wanted if own.isdisjoint(name.split("."))}:
        raise UserError(
            f"{folder}: the adapter has weights for layers that the base model does not have: {listed(unused)}"
        )
    merged = adapted.merge_and_unload()
    if not whole:
        setattr(model, prefix, merged)
        return model
    plain: PreTrainedModel = merged
    return plain


def _refuse_unmergeable(model: PreTrainedModel, folder: Path, names: Set[str]) -> None:
    """Raise ``UserError`` for an adapter that cannot be merged into its base."""
    path = folder / PEFT_CONFIG
    record = read_json(path) if path.is_file() else {}
    kind = str(record.get("peft_type"))
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"):
        raise UserError(f"{folder}: an adapter of kind {kind} adds tokens to the input and cannot be merged")
    if record.get("layer_replication"):
        raise UserError(f"{folder}: an adapter that repeats layers of its base (layer_replication) cannot be merged")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    if tied and any("lora_embedding" in name for name in names):
        raise UserError(f"{folder}: LoRA on embeddings that are the LM head's weights too (tied) cannot be merged")


def _embedding_names(model: PreTrainedModel) -> Set[str]:
    """The last names of the embeddings and of the vocabulary projection."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    named = (name for name, module in model.named_modules() if any(module is layer for layer in layers))
    return {name.rpartition(".")[2] for name in named}


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's weights. Raises ``UserError`` if the file is missing or damaged."""
    file = folder / PEFT_WEIGHTS
    if not file.is_file():  # peft would go on to look for a pickle
        raise UserError(f"{folder}: no {PEFT_WEIGHTS}")
    try:
        return {name: shape for name, (_, shape) in tensors(file).items()}
    except UserError as error:
        raise UserError(f"{folder}: cannot load the adapter: {error}") from error


def embedding_rows(model: PreTrainedModel, folder: Path) -> int | None:
    """Rows of the embeddings saved with an adapter that was trained with new tokens; None: none are saved."""
    table = model.get_input_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is table)
    ending = f".{name}.weight"
    return next((shape[0] for own, shape in _shapes(folder).items() if own.endswith(ending) and len(shape) == 2), None)


def adapter_folder(source: ModelSource) -> Path:
    """The folder of an adapter saved by peft; an adapter on the hub is fetched into the hub's cache.

    Raises ``UserError`` if there are no safetensors in it.
    """
    if source.is_local:
        return Path(source.location)
    weights = hub_file(source.location, PEFT_WEIGHTS)
    if weights is None:
        raise UserError(f"{source.location}: the hub has no {PEFT_WEIGHTS} of this adapter")
    return weights.parent


def quantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace every linear layer but the projection by an NF4 one that computes in ``dtype``, on the CPU.

    A GPU, if there is one, quantizes layer by layer, so that it never holds the whole model.
    """
    bnb = _bitsandbytes()
    for name, layer in _quantizable(model):
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type=NF4, device="meta",
        )  # fmt: skip
        quantized.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type=NF4, module=quantized
        )
        quantized.bias = layer.bias
        quantized.support_avx512bf16_for_cpu = False  # its packed layout is for inference only
        model.set_submodule(name, quantized.to(_quantizer()).to("cpu"))
    model.is_loaded_in_4bit = True  # what peft asks
    return model


@torch.no_grad()
def _round_to_nf4(model: PreTrainedModel) -> None:
    """Round the weights of every linear layer but the projection to NF4."""
    bnb = _bitsandbytes()
    for _, layer in _quantizable(model):
        weight = layer.weight.data.to(_quantizer())
        codes, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type=NF4)
        layer.weight.copy_(bnb.functional.dequantize_4bit(codes, state))


def _quantizer() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _quantizable(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in linear_layers(model).items() if isinstance(layer, nn.Linear)]


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise missing_extra("bitsandbytes, which four-bit weights need,", "qlora") from error
    return bitsandbytes
