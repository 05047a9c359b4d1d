"""A model ready to train: loaded by its backend, on its device, set up as the settings say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llara_cli.core import registry
from llara_cli.core.artifacts import write_atomically
from llara_cli.cpu import keep_freed_memory
from llara_cli.model.backends import TrainingBackend, TrainingSetup
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import RECIPE_FILE, Recipe, to_json
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.base_model import BaseModel
from llara_cli.training.config import ExecutionConfig, TrainConfig
from llara_cli.training.loop import autocast


@dataclass
class TrainableModel:
    """A model to train, with what is saved beside its weights."""

    backend: TrainingBackend
    model: PreTrainedModel
    decoder: Decoder
    tokenizer: TextTokenizer
    recipe: Recipe

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write checkpoint, tokenizer and recipe into ``folder``."""
        dim = self.decoder.dim
        with quiet_transformers():
            self.backend.save(self.model, folder, dtype)
        self.tokenizer.save(folder)
        write_atomically(folder / RECIPE_FILE, json.dumps(to_json(self.recipe, dim), indent=1) + "\n")


def load_trainable(
    base: BaseModel,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    source: ModelSource,
    note: Callable[[str], None],
) -> TrainableModel:
    """Load a model through the training backend and move it to the device.

    Args:
        source: the base model, or a copy of it with fewer layers.
        note: called with the backend's notes for the user.
    """
    backend: TrainingBackend = registry.load("training", config.backend)()
    tokenizer = base.tokenizer.with_tokens(())
    bf16 = config.optimizer.weights == "bf16"
    setup = TrainingSetup(dtype, base.recipe.new_tokens, config.seed, config.lora, bf16, note)
    torch.manual_seed(config.seed)  # adapters start at random, and a resumed run must start at the same
    model = backend.load(source, tokenizer, setup)
    model.to(device)
    if device.type == "cpu":  # not earlier: loading frees memory that is not used again
        keep_freed_memory()
    decoder = Decoder(model)
    decoder.check(base.source.path)
    return TrainableModel(backend, model, decoder, tokenizer, base.recipe)


def choose_computation(
    decoder: Decoder, execution: ExecutionConfig, device: torch.device, dtype: torch.dtype, *, every: int, alone: bool
) -> None:
    """Set up the decoder as the settings say. Raises ``UserError`` for what it does not support.

    Args:
        every: every ``every``-th layer is recomputed in backward; 0: none.
        alone: whether one process trains.
    """
    with autocast(device, dtype):
        decoder.use_attention(execution.attention)
    if execution.compute == "float8":
        decoder.multiply_in_float8()
    if every:
        decoder.recompute_in_backward(every)
    if execution.compile:
        decoder.compile_layers()
    if alone and not (every or execution.compile):
        decoder.train_lean()
