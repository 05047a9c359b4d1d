"""Training backend ``full``: every weight trains."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from llara_cli.model.architecture import find_body
from llara_cli.model.backends import TrainingBackend, TrainingSetup
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer


class FullBackend(TrainingBackend):
    """All weights, in fp32, as an Adam step at 1e-5 is lost in bf16 unless the optimizer rounds stochastically."""

    name = "full"

    def load(self, source: ModelSource, tokenizer: TextTokenizer, setup: TrainingSetup) -> PreTrainedModel:
        """The model in fp32 (or bf16, see ``setup``), with its new tokens, every weight trainable."""
        model = load_causal_lm(source, torch.bfloat16 if setup.bf16_weights else torch.float32)
        add_new_tokens(model, tokenizer, setup.new_tokens, setup.seed)
        # a multimodal model has more than a decoder, the LM head and what is between
        parts = (find_body(model), model.get_output_embeddings())
        trained = {id(weight) for part in parts for weight in part.parameters()}
        other = {id(weight) for weight in model.base_model.parameters()} - trained
        for weight in model.parameters():
            weight.requires_grad_(id(weight) not in other)
        return model

    def save(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        """One safetensors checkpoint in ``dtype``."""
        model.to(dtype).save_pretrained(folder)
