"""The stage ``pretrain``: a corpus and a base model in, an adapted model in the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llara_cli.console import Console
from llara_cli.data.corpus import corpus_files
from llara_cli.model.backbone import choose_device, choose_dtype, dtype_name
from llara_cli.model.facts import ModelFacts
from llara_cli.model.recipe import Recipe
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import PromptIds, TextTokenizer
from llara_cli.protocols import TrainingSetup
from llara_cli.settings import PretrainSettings, as_json
from llara_cli.training.examples import ExampleBuilder, ExampleTable
from llara_cli.training.loop import Schedule, Trainer
from llara_cli.training.plan import Load, Plan, training_plan, warn_if_long
from llara_cli.training.preparation import (
    MICRO_BATCH_TOKENS,
    Prepared,
    announce,
    check_trainable,
    choose_recipe,
    finished_result,
    prepare,
    refuse_length,
    train_and_finish,
)
from llara_cli.training.pretext import Example, PretextObjective
from llara_cli.workspace import Artifact, Blueprint, Build, Workspace, input_record, slug


@dataclass(frozen=True)
class Pretraining:
    """One run, with every setting chosen."""

    workspace: Workspace
    console: Console
    source: ModelSource
    corpus: Sequence[str]
    settings: PretrainSettings
    recipe: Recipe
    facts: ModelFacts
    device: torch.device
    dtype: torch.dtype
    name: str

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        console: Console,
        source: ModelSource,
        corpus: Sequence[str],
        settings: PretrainSettings,
        name: str | None,
    ) -> Pretraining:
        """Check everything that can be checked without the weights. Raises ``UserError`` for the caller's mistakes."""
        settings.optimiser.check()
        check_trainable(settings.backend)
        recipe = choose_recipe(settings.recipe, source)
        corpus_files(corpus)
        facts = ModelFacts.of(source)
        settings = settings.fitted(facts.parameters, facts.max_positions)
        assert settings.max_length is not None
        refuse_length(settings.max_length, facts.max_positions, "--max-length")
        recipe = replace(
            recipe,
            targets=settings.targets or recipe.targets,
            drop_stop_words=recipe.drop_stop_words if settings.drop_stop_words is None else settings.drop_stop_words,
        )
        device = choose_device()
        name = name or derived_name(source.name, recipe.name, corpus)
        dtype = choose_dtype(settings.dtype, device)
        return cls(workspace, console, source, corpus, settings, recipe, facts, device, dtype, name)

    def run(self, *, restart: bool) -> dict[str, Any]:
        """Train, or take up where an earlier run stopped, or give the finished run's result again."""
        announce(self.console, "model", self.source, self.recipe)
        with self.workspace.build("models", self.name, self.blueprint, restart=restart) as build:
            if isinstance(build, Artifact):
                return finished_result(self.console, build)
            return self._train(build)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The base model's own tokenizer."""
        return TextTokenizer.load(self.source)

    @cached_property
    def prompts(self) -> PromptIds:
        """The recipe in token ids. Raises ``UserError`` where ``--max-length`` leaves no room for a text."""
        prompts = self.tokenizer.with_tokens(self.recipe.new_tokens).prompt_ids(self.recipe)
        assert self.settings.max_length is not None
        prompts.text_limit(self.settings.max_length)
        return prompts

    @cached_property
    def blueprint(self) -> Blueprint:
        """What makes an equal run."""
        settings = as_json(self.settings) | {
            "recipe": self.recipe.name,
            "targets": self.recipe.targets,
            "drop_stop_words": self.recipe.drop_stop_words,
            "dtype": dtype_name(self.dtype),
            "model": self.source.name,
            "task": "pretrain",
        }
        inputs = [input_record(path) for path in corpus_files(self.corpus)]
        inputs += [{"name": item, "sha256": None} for item in self.corpus if item.startswith("hf:")]
        return Blueprint(settings, inputs, {"model": self.source.fingerprint()})

    @cached_property
    def table(self) -> ExampleTable:
        """The corpus as tokenised examples, in the workspace's cache."""
        assert self.settings.max_length is not None
        builder = ExampleBuilder(self.tokenizer, self.recipe, self.prompts, self.settings.max_length)
        fingerprints = [str(item["sha256"] or item["name"]) for item in self.blueprint.inputs]
        path = self.workspace.root / "cache" / f"examples-{builder.key(fingerprints)}.arrow"
        with self.console.bar("reading", None, unit="passages") as bar:
            return builder.build(self.corpus, path, bar)

    def plan(self) -> Plan:
        """What ``run`` would do, without loading the weights."""
        schedule = Schedule.of(len(self.table), self.settings.optimiser)
        load = Load(sum(self.table.lengths()), self.prompts.overhead(), 2 * len(self.table), self.budget)
        return training_plan(
            self.facts, self.settings.backend, self.settings.adapter, self.device, self.dtype, schedule, load
        )

    @property
    def budget(self) -> int:
        """Tokens of one forward."""
        return self.settings.optimiser.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device.type]

    def _train(self, build: Build) -> dict[str, Any]:
        schedule = Schedule.of(len(self.table), self.settings.optimiser)
        warn_if_long(self.console, self.plan())
        prepared = self._prepare()
        folder = build.open_folder()
        trainer: Trainer[Example] = Trainer(
            model=prepared.model,
            objective=self._objective(prepared),
            schedule=schedule,
            pick=lambda _, numbers: [self.table[number] for number in numbers],
            settings=self.settings.optimiser,
            folder=folder,
            dtype=self.dtype,
        )
        return train_and_finish(self.console, build, trainer, prepared)

    def _prepare(self) -> Prepared:
        optimiser = self.settings.optimiser
        setup = TrainingSetup(self.dtype, self.recipe.new_tokens, optimiser.seed, self.settings.adapter)
        return prepare(
            self.source, self.tokenizer, self.recipe, self.settings.backend, setup, optimiser.gradient_checkpointing
        )

    def _objective(self, prepared: Prepared) -> PretextObjective:
        joint = prepared.backbone.runs_jointly()
        if not joint:
            self.console.note(f"{self.source.name} takes no custom mask or positions: SELF and NEXT run as two passes")
        return PretextObjective(prepared.backbone, self.recipe, self.prompts, self.budget, joint)


def derived_name(base: str, recipe: str, inputs: Sequence[str], suffix: str = "") -> str:
    """``BASE-RECIPE-INPUT[-ft]``; a base that is an adapted model has its recipe in its name already."""
    stem = slug(Path(inputs[0].removeprefix("hf:")).expanduser().resolve().name.split(".")[0])
    parts = [base, recipe, stem] if f"-{recipe}-" not in f"{base}-" else [base, stem]
    return "-".join(parts) + suffix
