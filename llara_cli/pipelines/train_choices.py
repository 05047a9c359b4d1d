"""What a training run chooses and refuses before it starts: recipe, name, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llara_cli.core import registry
from llara_cli.core.config import refuse_nonpositive
from llara_cli.core.errors import UserError
from llara_cli.core.names import input_stem, slug
from llara_cli.model.recipe import PAPER, Recipe, by_name
from llara_cli.model.source import ModelSource
from llara_cli.training.config import FinetuneConfig, OptimizerConfig, PretrainConfig


def choose_recipe(settings: PretrainConfig | FinetuneConfig, source: ModelSource) -> Recipe:
    """The recipe asked for, else the model's own, else the paper's. A saved recipe of that name keeps its own settings.

    Raises ``UserError`` for an unknown recipe, and for a training backend that is unknown or lacks its library.
    """
    registry.load("training", settings.backend)
    if source.saved_recipe is not None and settings.recipe in (None, source.saved_recipe.name):
        return source.saved_recipe
    return by_name(settings.recipe) if settings.recipe else PAPER


def derived_name(
    base: str, recipe: str, inputs: Sequence[str], settings: PretrainConfig | FinetuneConfig, suffix: str = ""
) -> str:
    """``BASE-RECIPE-INPUT[-BACKEND][-OPTIMIZER][-bf16][-ft]``: how it is trained, where that is not the default.

    A base that is an adapted model has its recipe in its name already.
    """
    stem = slug(inputs[0]) if inputs[0].startswith("hf:") else input_stem(Path(inputs[0]))
    parts = [base, stem] if f"-{recipe}-" in f"{base}-" else [base, recipe, stem]
    optimizer = settings.optimizer
    chosen = [
        (settings.backend, type(settings).backend),
        (optimizer.name, OptimizerConfig.name),
        (optimizer.weights, OptimizerConfig.weights),
    ]
    return "-".join([slug("-".join(parts)), *(slug(value) for value, usual in chosen if value != usual)]) + suffix


def refuse_length(name: str, length: int, max_positions: int | None) -> None:
    """Raise ``UserError`` where the model has fewer positions than the setting ``name`` asks for."""
    refuse_nonpositive(name, length)
    if max_positions is not None and length > max_positions:
        raise UserError(f"`{name}={length}` is above the model's {max_positions} positions")
