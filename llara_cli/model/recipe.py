"""Recipes as data: prompts around a text, the hidden states that are its embedding, and the targets.

``PAPER`` is the method as published (arXiv 2312.15503, section 3); ``RELEASED`` is what the authors' code and the
BAAI/LLARA-* checkpoints do. Both are values of one type, saved with a checkpoint in ``llara.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llara_cli.core.errors import UserError
from llara_cli.model.prompts import ASYMMETRIC, BRANCHES, PAPER_PROMPTS, RELEASED_PROMPTS, Branch, Prompt

RECIPE_FILE = "llara.json"
RECIPE_SOURCES = (RECIPE_FILE, "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
"""The files of a checkpoint that ``read_recipe`` reads."""


@dataclass(frozen=True)
class Recipe:
    """One way to turn a text into an embedding and to train it.

    Attributes:
        prefix: written before every text (after the tokenizer's own start token).
        prompts: SELF and NEXT.
        logits_pooling: how the slots' logits become one row: ``last`` slot, or element-wise ``max`` over all.
        embedding_pooling: how the slots' hidden states become one vector: ``last`` or ``mean``.
        targets: ``all`` tokens of a target text, repeated ones too, or its ``unique`` tokens without special ones.
        drop_stop_words: remove English stop words and punctuation from target texts first.
        language_model_loss: add the causal-LM loss over the text's own tokens.
        pretext_weight: factor on EBAE and on EBAR.
        pretext_mean: total = mean of the two terms instead of their sum.
        target_limit: targets of prepared rows are cut at the tokens left for the ``text``, or at the ``total`` length.
        roles: which prompt a query and a passage get.
        dims: widths that the embedding was trained to be cut to (Matryoshka); empty: only the full width.
    """

    name: str
    prefix: str
    prompts: Mapping[Branch, Prompt]
    logits_pooling: Literal["last", "max"]
    embedding_pooling: Literal["last", "mean"]
    targets: Literal["all", "unique"]
    drop_stop_words: bool
    language_model_loss: bool
    pretext_weight: float
    pretext_mean: bool
    target_limit: Literal["text", "total"]
    roles: Mapping[str, Branch] = field(default_factory=lambda: dict(ASYMMETRIC))
    dims: tuple[int, ...] = ()

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """Tokens that the tokenizer must have as special tokens, SELF's before NEXT's."""
        return tuple(token for branch in BRANCHES for token in self.prompts[branch].slots)


PAPER = Recipe(
    name="paper",
    prefix="",
    prompts=PAPER_PROMPTS,
    logits_pooling="last",
    embedding_pooling="last",
    targets="all",
    drop_stop_words=False,
    language_model_loss=False,
    pretext_weight=1.0,
    pretext_mean=False,
    target_limit="text",
)
RELEASED = Recipe(
    name="released",
    prefix='"',
    prompts=RELEASED_PROMPTS,
    logits_pooling="max",
    embedding_pooling="mean",
    targets="unique",
    drop_stop_words=True,
    language_model_loss=True,
    pretext_weight=0.1,
    pretext_mean=True,
    target_limit="total",
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PAPER, RELEASED)}


_ALLOWED = {
    "logits_pooling": ("last", "max"),
    "embedding_pooling": ("last", "mean"),
    "targets": ("all", "unique"),
    "target_limit": ("text", "total"),
}


def by_name(name: str) -> Recipe:
    """The recipe called ``name``. Raises ``UserError`` naming the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: known are {', '.join(RECIPES)}")
    return RECIPES[name]


def to_json(recipe: Recipe, dim: int) -> dict[str, Any]:
    """The contents of ``llara.json``: the recipe and the width of the embedding."""
    return {"version": 1, "dim": dim, "recipe": asdict(recipe)}


def from_json(data: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that ``to_json`` wrote. Raises ``UserError`` if it is not one."""
    try:
        fields = dict(data["recipe"])
        prompts = {
            branch: Prompt(fields["prompts"][branch]["text"], tuple(fields["prompts"][branch]["slots"]))
            for branch in BRANCHES
        }
        recipe = Recipe(**(fields | {"prompts": prompts, "dims": tuple(fields.get("dims", ()))}))
        if any(getattr(recipe, name) not in allowed for name, allowed in _ALLOWED.items()):
            raise ValueError("; ".join(f"{name} must be one of {', '.join(a)}" for name, a in _ALLOWED.items()))
        if {"query", "passage"} - recipe.roles.keys() or set(recipe.roles.values()) - set(BRANCHES):
            raise ValueError('roles must give "query" and "passage" one of "self" and "next"')
        if not all(isinstance(dim, int) and dim > 0 for dim in recipe.dims):
            raise ValueError("dims must be positive whole numbers")
        if not all(isinstance(text, str) for text in (recipe.prefix, *(prompt.text for prompt in prompts.values()))):
            raise ValueError("prefix and prompts must be text")
        return recipe
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a recipe that this version reads: {error}") from error


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of a checkpoint folder: from its ``llara.json``; ``RELEASED`` where its tokenizer has the 16 slots."""
    saved = folder / RECIPE_FILE
    if saved.is_file():
        return from_json(_read(saved), str(saved))
    return RELEASED if set(RELEASED.new_tokens) <= _special_tokens(folder) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    return data


def _special_tokens(folder: Path) -> set[str]:
    """Tokens added on top of a checkpoint's vocabulary, read from its files without loading the tokenizer."""
    found: set[str] = set()
    for name, key in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "added_tokens_decoder")):
        path = folder / name
        if path.is_file():
            entries = _read(path).get(key) or []
            tokens = entries.values() if isinstance(entries, dict) else entries
            found |= {token["content"] for token in tokens}
    added = folder / "added_tokens.json"
    return found | set(_read(added) if added.is_file() else ())
