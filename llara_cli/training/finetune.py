"""The stage ``finetune``: training rows and a model in, a contrastively trained model in the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llara_cli.console import Console
from llara_cli.data.collection import BeirFolder
from llara_cli.data.lines import check_file
from llara_cli.data.training_rows import TrainingRow, read_training_rows
from llara_cli.model.backbone import choose_device, choose_dtype, dtype_name
from llara_cli.model.encoder import Sequencer
from llara_cli.model.facts import ModelFacts
from llara_cli.model.recipe import Recipe
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import TextTokenizer
from llara_cli.protocols import TrainingSetup
from llara_cli.settings import FinetuneSettings, as_json
from llara_cli.training.contrastive import ContrastiveObjective, Group
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
from llara_cli.training.pretrain import derived_name
from llara_cli.workspace import Artifact, Blueprint, Build, Workspace, input_record


def draw_group(row: TrainingRow, negatives: int, seed: Sequence[int]) -> Group:
    """A row's passages for one step.

    Of several positives one is drawn by ``seed``. Exactly ``negatives`` negatives stay in order; of more that many are
    drawn; fewer are all taken, then repeated as drawn; none: none.
    """
    draw = np.random.default_rng(list(seed))
    positive = int(draw.integers(len(row.positives))) if len(row.positives) > 1 else 0
    have = len(row.negatives)
    chosen = list(range(have))
    if have > negatives:
        chosen = draw.choice(have, negatives, replace=False).tolist()
    elif 0 < have < negatives:
        chosen += draw.choice(have, negatives - have).tolist()
    passages = [row.positives[positive], *(row.negatives[number] for number in chosen)]
    ids = [row.positive_ids[positive], *(row.negative_ids[number] for number in chosen)]
    own = frozenset[str]().union(*map(identity, row.positives, row.positive_ids))
    return Group(row.query, passages, [*map(identity, passages, ids)], own)


def training_files(path: Path) -> list[Path]:
    """The files behind a training argument. Raises ``UserError`` where one is missing."""
    if not path.is_dir():
        check_file(path)
        return [path]
    folder = BeirFolder(path)
    return [folder.corpus, folder.queries, folder.qrels("train")]


def identity(text: str, passage_id: str | None) -> frozenset[str]:
    """What a passage is known by when false negatives are masked: its text, and its id where it has one."""
    return frozenset({f"text:{text}"} | ({f"id:{passage_id}"} if passage_id is not None else set()))


@dataclass(frozen=True)
class Finetuning:
    """One run, with every setting chosen."""

    workspace: Workspace
    console: Console
    source: ModelSource
    train: Sequence[Path]
    settings: FinetuneSettings
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
        train: Sequence[Path],
        settings: FinetuneSettings,
        name: str | None,
    ) -> Finetuning:
        """Check everything that can be checked without the weights. Raises ``UserError`` for the caller's mistakes."""
        settings.check()
        check_trainable(settings.backend)
        recipe = choose_recipe(settings.recipe, source)
        for path in train:
            training_files(path)
        facts = ModelFacts.of(source)
        settings = settings.fitted(facts.parameters, facts.max_positions)
        refuse_length(settings.query_length, facts.max_positions, "--query-length")
        refuse_length(settings.passage_length, facts.max_positions, "--passage-length")
        device = choose_device()
        name = name or derived_name(source.name, recipe.name, [str(path) for path in train], "-ft")
        return cls(
            workspace, console, source, train, settings, recipe, facts, device, choose_dtype(settings.dtype, device), name
        )  # fmt: skip

    def run(self, *, restart: bool) -> dict[str, Any]:
        """Train, or take up where an earlier run stopped, or give the finished run's result again."""
        announce(self.console, "model", self.source, self.recipe)
        with self.workspace.build("models", self.name, self.blueprint, restart=restart) as build:
            if isinstance(build, Artifact):
                return finished_result(self.console, build)
            return self._train(build)

    @cached_property
    def blueprint(self) -> Blueprint:
        """What makes an equal run."""
        settings = as_json(self.settings) | {
            "recipe": self.recipe.name,
            "dtype": dtype_name(self.dtype),
            "model": self.source.name,
            "task": "finetune",
        }
        inputs = [input_record(file) for path in self.train for file in training_files(path)]
        return Blueprint(settings, inputs, {"model": self.source.fingerprint()})

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """Every training row. Raises ``UserError`` naming file and line of a bad one."""
        return [row for path in self.train for row in read_training_rows(path)]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The base model's own tokenizer."""
        return TextTokenizer.load(self.source)

    @cached_property
    def sequencer(self) -> Sequencer:
        """Texts to sequences. Raises ``UserError`` where a length leaves no room for a text."""
        lengths = {"query": self.settings.query_length, "passage": self.settings.passage_length}
        return Sequencer(self.tokenizer.with_tokens(self.recipe.new_tokens), self.recipe, lengths)  # type: ignore[arg-type]

    def plan(self) -> Plan:
        """What ``run`` would do, without loading the weights."""
        schedule = Schedule.of(len(self.rows), self.settings.optimiser)
        groups = [self._pick(0, [number])[0] for number in range(len(self.rows))]
        queries = self.sequencer.trees([group.query for group in groups], "query").tokens
        passages = self.sequencer.trees([text for group in groups for text in group.passages], "passage").tokens
        each = 1 + sum(len(group.passages) for group in groups) / len(groups)
        load = Load(queries + passages, int(each * self.sequencer.prompts.overhead(["self"])), 0, self.budget)
        return training_plan(
            self.facts, self.settings.backend, self.settings.adapter, self.device, self.dtype, schedule, load
        )

    @property
    def budget(self) -> int:
        """Tokens of one forward."""
        return self.settings.optimiser.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device.type]

    def _pick(self, epoch: int, numbers: Sequence[int]) -> list[Group]:
        seed = self.settings.optimiser.seed
        return [draw_group(self.rows[n], self.settings.negatives, (seed, epoch, n)) for n in numbers]

    def _train(self, build: Build) -> dict[str, Any]:
        schedule = Schedule.of(len(self.rows), self.settings.optimiser)
        warn_if_long(self.console, self.plan())
        prepared = self._prepare()
        trainer: Trainer[Group] = Trainer(
            model=prepared.model,
            objective=self._objective(prepared),
            schedule=schedule,
            pick=self._pick,
            settings=self.settings.optimiser,
            folder=build.open_folder(),
            dtype=self.dtype,
        )
        return train_and_finish(self.console, build, trainer, prepared)

    def _prepare(self) -> Prepared:
        optimiser = self.settings.optimiser
        setup = TrainingSetup(self.dtype, self.recipe.new_tokens, optimiser.seed, self.settings.adapter)
        return prepare(
            self.source, self.tokenizer, self.recipe, self.settings.backend, setup, optimiser.gradient_checkpointing
        )

    def _objective(self, prepared: Prepared) -> ContrastiveObjective:
        return ContrastiveObjective(
            backbone=prepared.backbone,
            recipe=self.recipe,
            sequencer=self.sequencer,
            budget=self.budget,
            temperature=self.settings.temperature,
            in_batch=self.settings.in_batch_negatives,
            mask_false_negatives=self.settings.mask_false_negatives,
            chunk=self.settings.chunk_size,
        )
