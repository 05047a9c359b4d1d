"""Training backend ``lora``: low-rank adapters on all linear layers, and the rows of new tokens (peft)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from llara_cli.model.backbone import add_new_tokens, load_causal_lm
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import TextTokenizer
from llara_cli.protocols import TrainingBackend, TrainingSetup


class LoraBackend(TrainingBackend):
    """The base stays frozen in the compute dtype; adapters train in fp32 (RepLLaMA's set-up)."""

    name = "lora"

    def __init__(self) -> None:
        self.adapted: Any = None
        self.grown = False

    def load(self, source: ModelSource, tokenizer: TextTokenizer, setup: TrainingSetup) -> PreTrainedModel:
        """The base model with adapters in place; the rows of tokens that the base never saw train too."""
        model = load_causal_lm(source, setup.dtype)
        fresh = add_new_tokens(model, tokenizer, setup.new_tokens, setup.seed)
        self.grown = bool(fresh)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=setup.adapter.rank,
            lora_alpha=setup.adapter.alpha,
            lora_dropout=setup.adapter.dropout,
            target_modules="all-linear",
            trainable_token_indices=fresh or None,
        )
        self.adapted = get_peft_model(model, config)
        for weight in self.adapted.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        adapted: PreTrainedModel = self.adapted.get_base_model()
        return adapted

    def save(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        """The adapter under ``adapter/``, and the merged model as a checkpoint that any tool loads."""
        # said outright: peft would ask the hub whether the base model has as many rows
        self.adapted.save_pretrained(folder / "adapter", save_embedding_layers=self.grown)
        merged = self.adapted.merge_and_unload()
        merged.to(dtype).save_pretrained(folder)
