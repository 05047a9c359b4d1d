"""The model that training starts from, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llara_cli.core import registry
from llara_cli.core.config import checked_count
from llara_cli.core.errors import UserError
from llara_cli.core.names import input_stem, slug
from llara_cli.core.reporter import Reporter
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.recipe import PAPER, Recipe, by_name
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.config import OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class BaseModel:
    """A model to train, and the ``recipe`` to train it with."""

    source: ModelSource
    recipe: Recipe
    info: ModelFacts
    reporter: Reporter

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """Its own tokenizer. Raises ``UserError`` if it has tokens that the model does not know."""
        source = self.source
        with self.reporter.status(f"loading the tokenizer of {source.name}"):
            tokenizer = TextTokenizer.load(source)
            tokenizer.check_ids(self.recipe, self.info.embedded_tokens, source.path)
        if warning := tokenizer.contradiction():
            self.reporter.warn_once(f"{source.path}: {warning}")
        return tokenizer

    def refuse_length(self, name: str, length: int) -> None:
        """Raise ``UserError`` if the model has fewer positions than the setting ``name`` asks for."""
        checked_count(name, length)
        positions = self.info.max_positions
        if positions is not None and length > positions:
            raise UserError(f"`{name}={length}` is above the model's {positions} positions")


def read_info(source: ModelSource, reporter: Reporter) -> ModelFacts:
    """Facts from the model's configuration. Raises ``UserError`` for one that cannot be read."""
    with reporter.status(f"reading the configuration of {source.name}"):
        return ModelFacts.of(source)


def choose_recipe(config: TrainConfig, source: ModelSource) -> Recipe:
    """The recipe that was asked for, else the model's own, else the paper's. A saved recipe keeps its own settings.

    Raises ``UserError`` for an unknown recipe, and for a training backend that is unknown or lacks its library.
    """
    registry.load("training", config.backend)
    if source.saved_recipe is not None and config.recipe in (None, source.saved_recipe.name):
        return source.saved_recipe
    return by_name(config.recipe) if config.recipe else PAPER


def default_model_name(base: str, recipe: str, inputs: Sequence[str], config: TrainConfig, suffix: str = "") -> str:
    """``BASE-RECIPE-INPUT[-BACKEND][-OPTIMIZER][-bf16][-ft]``: how it is trained, where that is not the default.

    A base that is an adapted model has its recipe in its name already.
    """
    stem = slug(inputs[0]) if inputs[0].startswith("hf:") else input_stem(Path(inputs[0]))
    parts = [base, stem] if f"-{recipe}-" in f"{base}-" else [base, recipe, stem]
    optimizer = config.optimizer
    choices = [
        (config.backend, type(config).backend),
        (optimizer.name, OptimizerConfig.name),
        (optimizer.weights, OptimizerConfig.weights),
    ]
    unusual = [slug(value) for value, usual in choices if value != usual]
    return "-".join([slug("-".join(parts)), *unusual]) + suffix
