"""Training backend ``lora``: low-rank adapters on all linear layers, and the rows of new tokens (peft)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llara_backends import adapters
from llara_cli.model.backends import TrainingBackend, TrainingSetup
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer


class LoraBackend(TrainingBackend):
    """The base stays frozen in the compute dtype; adapters train in fp32 (as in RepLLaMA)."""

    name = "lora"
    quantization: str | None = None

    def __init__(self) -> None:
        self.adapted: Any = None
        self.source: ModelSource | None = None
        self.setup: TrainingSetup | None = None

    def load(self, source: ModelSource, tokenizer: TextTokenizer, setup: TrainingSetup) -> PreTrainedModel:
        """The base model with adapters; the embedding rows of new tokens are trained too."""
        self.source, self.setup = source, setup
        model = load_causal_lm(source, setup.dtype)
        fresh = add_new_tokens(model, tokenizer, setup.new_tokens, setup.seed)
        self.adapted = adapters.adapt(self.prepare(model, setup), fresh, setup)
        adapted: PreTrainedModel = self.adapted.get_base_model()
        return adapted

    def prepare(self, model: PreTrainedModel, setup: TrainingSetup) -> PreTrainedModel:
        """Prepare the base for training adapters."""
        return model

    def save(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        """Save the adapter in ``adapter/``, and the merged model as a checkpoint that any tool loads."""
        assert self.source is not None
        assert self.setup is not None
        adapters.save(self.adapted, self.source, self.setup, folder, dtype, self.quantization)
