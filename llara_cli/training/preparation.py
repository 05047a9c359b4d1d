"""What pre-training and fine-tuning do alike: fit the settings to the model, load it, save it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from llara_cli import registry
from llara_cli.console import Console, UserError
from llara_cli.model.backbone import Backbone, choose_device, quiet_transformers
from llara_cli.model.recipe import PAPER, RECIPE_FILE, Recipe, by_name, to_json
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import TextTokenizer
from llara_cli.protocols import TrainingBackend, TrainingSetup
from llara_cli.training import checkpoints
from llara_cli.training.loop import Trainer
from llara_cli.workspace import Artifact, Build, write_atomically

ItemT = TypeVar("ItemT")
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


def choose_recipe(name: str | None, source: ModelSource) -> Recipe:
    """``--recipe``, else the model's own, else the paper's. A saved recipe of that name keeps its own settings."""
    if source.saved_recipe is not None and name in (None, source.saved_recipe.name):
        return source.saved_recipe
    return by_name(name) if name else PAPER


@dataclass
class Prepared:
    """A model ready to train."""

    backend: TrainingBackend
    model: PreTrainedModel
    backbone: Backbone
    tokenizer: TextTokenizer
    recipe: Recipe

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Checkpoint, tokenizer and recipe into ``folder``."""
        dim = self.backbone.dim
        with quiet_transformers():
            self.backend.save(self.model, folder, dtype)
        self.tokenizer.save(folder)
        write_atomically(folder / RECIPE_FILE, json.dumps(to_json(self.recipe, dim), indent=1) + "\n")


def prepare(
    source: ModelSource,
    tokenizer: TextTokenizer,
    recipe: Recipe,
    backend_name: str,
    setup: TrainingSetup,
    gradient_checkpointing: bool,
) -> Prepared:
    """Load the model through its training backend and move it to the device."""
    backend: TrainingBackend = registry.load("training", backend_name)()
    tokenizer = tokenizer.with_tokens(())
    model = backend.load(source, tokenizer, setup)
    model.to(choose_device())  # type: ignore[arg-type]
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return Prepared(backend, model, Backbone(model), tokenizer, recipe)


def check_trainable(backend_name: str) -> None:
    """Raise ``UserError`` for a training backend that is unknown or lacks its library, before anything is read."""
    registry.load("training", backend_name)


def train_and_finish(console: Console, build: Build, trainer: Trainer[ItemT], prepared: Prepared) -> dict[str, Any]:
    """Train, save the model, and turn the build into an artifact; the command's result."""
    started = time.monotonic()
    with console.bar("training", trainer.schedule.steps, unit="steps") as bar:
        history = trainer.train(bar)
    seconds = time.monotonic() - started
    prepared.save(build.folder, trainer.dtype)
    checkpoints.discard(build.folder)
    result = summary(build, history, seconds, trainer.resumed_at)
    build.finish({key: result[key] for key in ("steps", "texts", "tokens")}, result)
    return result


def summary(build: Build, history: list[dict[str, Any]], seconds: float, resumed_at: int) -> dict[str, Any]:
    """The result of a training command, as the command line's contract names it."""
    fresh = sum(row["tokens"] for row in history[resumed_at:])
    return {
        "name": build.name,
        "path": str(build.target),
        "steps": len(history),
        "texts": sum(row["texts"] for row in history),
        "tokens": sum(row["tokens"] for row in history),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(fresh / seconds, 1) if seconds > 0 else 0.0,
        "history": history,
    }


def finished_result(console: Console, artifact: Artifact) -> dict[str, Any]:
    """The result that was printed when the artifact was made."""
    console.note(f"{artifact.kind}/{artifact.name} is finished already; nothing to do (--restart builds it anew)")
    result: dict[str, Any] = artifact.run["result"]
    return result


def announce(console: Console, what: str, source: ModelSource, recipe: Recipe) -> None:
    """Say which model and recipe the command took."""
    console.note(f"{what}: {source.name} ({source.path}), recipe {recipe.name}")


def refuse_length(length: int, max_positions: int | None, flag: str) -> None:
    """Raise ``UserError`` where the model has fewer positions than ``length``."""
    if length < 1:
        raise UserError(f"{flag} must be positive, not {length}")
    if max_positions is not None and length > max_positions:
        raise UserError(f"{flag} {length} is above the model's {max_positions} positions")
