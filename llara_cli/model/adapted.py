"""Models saved as an adapter only (``--no-merge``): base and adapter are put together when the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llara_cli.artifacts import read_json, write_atomically
from llara_cli.console import UserError
from llara_cli.model.source import ADAPTER, BASE, ModelSource
from llara_cli.protocols import TrainingSetup
from llara_cli.registry import missing_extra

NF4 = "nf4"


def save_base(folder: Path, source: ModelSource, setup: TrainingSetup, quantization: str | None) -> None:
    """Write down what an adapter was trained on: where the base lies, what it is, and how it was kept."""
    told = {
        "location": str(Path(source.location).resolve()) if source.is_local else source.location,
        "gguf_file": source.gguf_file,
        "fingerprint": source.fingerprint(),
        "dtype": str(setup.dtype).removeprefix("torch."),
        "new_tokens": list(setup.new_tokens),
        "seed": setup.seed,
        "quantization": quantization,
    }
    write_atomically(folder / BASE, json.dumps(told, indent=1) + "\n")


def base_of(source: ModelSource) -> tuple[ModelSource, dict[str, Any]]:
    """The base of an adapter's folder and what was written down of it.

    Raises ``UserError`` where the base is gone or is not the one that the adapter was trained on.
    """
    told = read_json(Path(source.location) / BASE)
    base = ModelSource(
        source.name, told["location"], told["gguf_file"], source.saved_recipe, remote_code=source.remote_code
    )
    if Path(base.location).is_absolute() and not Path(base.path).exists():
        raise UserError(f"{source.path}: an adapter whose base model is gone: no {base.path}")
    if base.fingerprint() != told["fingerprint"]:
        raise UserError(f"{source.path}: an adapter whose base model has changed since: {base.path}")
    return base, told


def put_together(model: PreTrainedModel, folder: Path, quantization: str | None) -> PreTrainedModel:
    """The base, with its new tokens, and the adapter in ``folder`` as one plain model in fp32."""
    from peft import PeftModel  # takes seconds to import

    if quantization == NF4:
        _round_to_nf4(model)
    model.float()
    merged: PreTrainedModel = PeftModel.from_pretrained(model, folder / ADAPTER).merge_and_unload()
    return merged


def quantise(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make every linear layer but the projection an NF4 one that computes in ``dtype``; quantised when it is moved."""
    bnb = _bitsandbytes()
    for name, layer in _linear_layers(model):
        quantised = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type=NF4, device="meta",
        )  # fmt: skip
        quantised.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type=NF4, module=quantised
        )
        quantised.bias = layer.bias
        quantised.support_avx512bf16_for_cpu = False  # its packed layout is for inference only
        model.set_submodule(name, quantised)
    model.is_loaded_in_4bit = True  # what peft asks
    return model.to("cpu") if not torch.cuda.is_available() else model


@torch.no_grad()
def _round_to_nf4(model: PreTrainedModel) -> None:
    """Give every linear layer but the projection the weights that NF4 leaves of it."""
    bnb = _bitsandbytes()
    for _, layer in _linear_layers(model):
        codes, state = bnb.functional.quantize_4bit(layer.weight.data, compress_statistics=True, quant_type=NF4)
        layer.weight.copy_(bnb.functional.dequantize_4bit(codes, state))


def _linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()
    return [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    ]


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise missing_extra("bitsandbytes, which four-bit weights need,", "qlora") from error
    return bitsandbytes
