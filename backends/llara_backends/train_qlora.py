"""Training backend ``qlora``: adapters on a base in four bits (NF4 with double quantization, bitsandbytes)."""

from __future__ import annotations

import bitsandbytes  # noqa: F401  that it is missing is told before any work
from transformers import PreTrainedModel

from llara_backends.train_lora import LoraBackend
from llara_cli.model.adapter_checkpoint import NF4, quantize
from llara_cli.model.backends import TrainingSetup


class QloraBackend(LoraBackend):
    """The base's linear layers, except the LM head, take half a byte per weight; they compute in the compute dtype."""

    name = "qlora"
    quantization = NF4

    def prepare(self, model: PreTrainedModel, setup: TrainingSetup) -> PreTrainedModel:
        """The base with its linear layers quantized."""
        return quantize(model, setup.dtype)
