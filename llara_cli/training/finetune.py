"""The stage ``finetune``: training rows and a model in, a contrastively trained model in the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llara_cli.artifacts import input_record
from llara_cli.console import Console
from llara_cli.data.collection import BeirFolder
from llara_cli.data.lines import check_file
from llara_cli.data.training_rows import TrainingRow, read_training_rows
from llara_cli.model.encoder import Sequencer
from llara_cli.model.facts import ModelFacts
from llara_cli.model.source import ModelSource
from llara_cli.protocols import Role
from llara_cli.settings import FinetuneSettings
from llara_cli.training.choices import choose_recipe, derived_name, refuse_length
from llara_cli.training.contrastive import ContrastiveObjective, Group
from llara_cli.training.plan import Load
from llara_cli.training.run import Prepared, TrainingRun
from llara_cli.workspace import Workspace

PLAN_SAMPLE = 256
"""Rows that the plan tokenises; it scales what they take to all."""


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
class Finetuning(TrainingRun[Group]):
    """InfoNCE on queries with their passages."""

    train: Sequence[Path]

    task: ClassVar[str] = "finetune"

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
        """Choose every open setting. Raises ``UserError`` for the caller's mistakes."""
        settings.check()
        recipe = choose_recipe(settings, source)
        for path in train:
            training_files(path)
        facts = ModelFacts.of(source)
        settings = settings.fitted(facts.parameters)
        refuse_length(settings.query_length, facts.max_positions, "--query-length")
        refuse_length(settings.passage_length, facts.max_positions, "--passage-length")
        name = name or derived_name(source.name, recipe.name, [str(path) for path in train], "-ft")
        return cls(workspace, console, source, settings, recipe, facts, name, train)

    @property
    def inputs(self) -> Sequence[dict[str, Any]]:
        """The training files."""
        return [input_record(file) for path in self.train for file in training_files(path)]

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """Every training row. Raises ``UserError`` naming file and line of a bad one."""
        return [row for path in self.train for row in read_training_rows(path)]

    @cached_property
    def sequencer(self) -> Sequencer:
        """Texts to sequences. Raises ``UserError`` where a length leaves no room for a text."""
        lengths: dict[Role, int] = {"query": self.settings.query_length, "passage": self.settings.passage_length}
        return Sequencer(self.tokenizer.with_tokens(self.recipe.new_tokens), self.recipe, lengths)

    @property
    def items(self) -> int:
        """Queries."""
        return len(self.rows)

    @property
    def load(self) -> Load:
        """Queries and passages of one epoch, a prompt each; no logits."""
        sample = range(0, self.items, max(1, self.items // PLAN_SAMPLE))
        groups = self.pick(0, sample)
        passages = [text for group in groups for text in group.passages]
        tokens = self.sequencer.trees([group.query for group in groups], "query").tokens
        tokens += self.sequencer.trees(passages, "passage").tokens
        each = 1 + len(passages) / len(groups)
        overhead = int(each * self.sequencer.prompts.overhead(["self"]))
        return Load(tokens * self.items // len(groups), overhead, 0, self.budget)

    def pick(self, epoch: int, numbers: Sequence[int]) -> Sequence[Group]:
        """Each row with the passages drawn for the epoch."""
        seed, negatives = self.settings.optimiser.seed, self.settings.negatives
        return [draw_group(self.rows[number], negatives, (seed, epoch, number)) for number in numbers]

    def objective(self, prepared: Prepared) -> ContrastiveObjective:
        """InfoNCE over cosine / temperature."""
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
