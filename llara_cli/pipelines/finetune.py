"""The stage ``finetune``: training rows and a model in, a contrastively trained model in the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import DistributedType

from llara_cli.core.artifacts import input_record
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Role, Vectors
from llara_cli.core.workspace import Workspace
from llara_cli.data.training_rows import TrainingRow, read_training_rows, training_files
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.recipe import ASYMMETRIC, SYMMETRIC, Recipe
from llara_cli.model.source import ModelSource
from llara_cli.pipelines.train import Prepared, TrainingRun
from llara_cli.pipelines.train_choices import choose_recipe, derived_name, refuse_length
from llara_cli.training import checkpoints
from llara_cli.training.config import FinetuneConfig
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.early_stopping import PARTS, Validation, Watch
from llara_cli.training.groups import Group, draw_group
from llara_cli.training.info_nce import ContrastiveLoss, contrasts
from llara_cli.training.loop import autocast
from llara_cli.training.plan import SAMPLE_BATCHES, Load, Sample
from llara_cli.training.schedule import Share

PLAN_SAMPLE = 256
"""Rows that the plan tokenizes; it scales what they take to all."""


@dataclass(frozen=True)
class TrainingSet:
    """A training argument; an epoch goes through its rows ``weight`` times."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, argument: str) -> TrainingSet:
        """``rows.jsonl``, or ``rows.jsonl:2`` with a weight. Raises ``UserError`` for a weight that is none."""
        whole, (path, colon, weight) = Path(argument), argument.rpartition(":")
        if whole.exists() or not colon or not path:
            return cls(whole)
        try:
            number = float(weight)
        except ValueError:
            return cls(whole)
        if not 0 < number <= 1000:
            raise UserError(f"{argument}: a weight must lie between 0 and 1000, not {weight}")
        return cls(Path(path), number)


def choose_roles(recipe: Recipe, settings: FinetuneConfig, hidden_size: int) -> Recipe:
    """The recipe with the roles and widths that the settings ask for; else it keeps its own.

    The whole width, at which vectors are used unless cut, is always among the widths. Raises ``UserError`` for one
    above the model's.
    """
    if settings.symmetric is not None:
        recipe = replace(recipe, roles=dict(SYMMETRIC if settings.symmetric else ASYMMETRIC))
    if not settings.dims:
        return recipe
    if max(settings.dims) > hidden_size:
        raise UserError(f"`dims={max(settings.dims)}` is above the model's width of {hidden_size}")
    return replace(recipe, dims=tuple(sorted({*settings.dims, hidden_size}, reverse=True)))


@dataclass(frozen=True)
class Finetuning(TrainingRun[Group]):
    """InfoNCE on queries with their passages."""

    train: Sequence[TrainingSet]
    dev: Validation | None = None

    task: ClassVar[str] = "finetune"

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        source: ModelSource,
        train: Sequence[TrainingSet],
        settings: FinetuneConfig,
        name: str | None,
        dev: Validation | None = None,
    ) -> Finetuning:
        """Choose every open setting; ``dev`` scores the model as it trains. Raises ``UserError`` for bad input."""
        recipe = choose_recipe(settings, source)
        for each in train:
            training_files(each.path)
        with workspace.reporter.status(f"reading the configuration of {source.name}"):
            facts = ModelFacts.of(source)
        recipe = choose_roles(recipe, settings, facts.hidden_size)
        settings = settings.fitted(facts.parameters)
        refuse_length("query_length", settings.query_length, facts.max_positions)
        refuse_length("passage_length", settings.passage_length, facts.max_positions)
        inputs = [str(each.path) for each in train]
        name = name or derived_name(source.name, recipe.name, inputs, settings, "-ft")
        return cls(workspace, source, settings, recipe, facts, name, train, dev)

    @property
    def inputs(self) -> Sequence[dict[str, Any]]:
        """The training files, and those of the dev set."""
        files = [input_record(file) for each in self.train for file in training_files(each.path)]
        return files + (self.dev.inputs() if self.dev else [])

    @property
    def recorded(self) -> dict[str, Any]:
        """With the weights of the training sets."""
        return super().recorded | {"set_weights": tuple(each.weight for each in self.train)}

    @cached_property
    def sets(self) -> list[list[TrainingRow]]:
        """The rows of each set. Raises ``UserError`` naming file and line of a bad one."""
        scored = self.settings.distillation > 0
        note = self.workspace.reporter.note
        found = [list(read_training_rows(each.path, scored=scored, note=note)) for each in self.train]
        rows = [row for rows in found for row in rows]
        self._check_negatives(rows)
        texts = [text for row in rows for text in (row.query, *row.positives, *row.negatives)]
        if empty := sum(not text.strip() for text in texts):
            self.workspace.reporter.warn(f"{empty} of {len(texts)} texts are empty: embedded as the bare prompt")
        return found

    def _check_negatives(self, rows: Sequence[TrainingRow]) -> None:
        """Warn of rows that nothing is contrasted with. Raises ``UserError`` where all are such."""
        settings = self.settings
        if settings.in_batch_negatives and settings.batch_size != 1:
            return
        alone = sum(not row.negatives for row in rows) if settings.negatives else len(rows)
        why = "`batch_size=1`" if settings.in_batch_negatives else "`in_batch_negatives=False`"
        if alone == len(rows):
            raise UserError(
                f"no row has hard negatives, and {why} leaves no others to contrast with: llara mine finds some"
            )
        if alone:
            without = f"{alone} of {len(rows)} rows have no hard negatives"
            self.workspace.reporter.warn(f"{without}, and teach nothing with {why}")

    def _check_contrast(self) -> None:
        """Raise ``UserError`` where no batch has a passage that a query is contrasted with."""
        loss = self._loss
        if loss.distillation:  # a row's own scores are followed, whatever is masked
            return
        if not any(contrasts(loss.static_mask(self.pick(*batch))) for batch in self.schedule.batches()):
            raise UserError(
                "no batch has anything to contrast: every passage beside a query's positive is masked as a copy of one "
                "of its positives, or there is none; give rows with negatives, more rows, or a larger `batch_size`"
            )

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """Every training row, set after set."""
        return [row for rows in self.sets for row in rows]

    @property
    def shares(self) -> Sequence[Share]:
        """One a set."""
        sizes = [len(rows) for rows in self.sets]
        pairs = zip(sizes, self.train, strict=True)
        return [Share(sum(sizes[:number]), size, each.weight) for number, (size, each) in enumerate(pairs)]

    @cached_property
    def sequencer(self) -> Sequencer:
        """Texts to sequences. Raises ``UserError`` where a length leaves no room for a text."""
        lengths: dict[Role, int] = {"query": self.settings.query_length, "passage": self.settings.passage_length}
        return Sequencer(self.tokenizer.with_tokens(self.recipe.new_tokens), self.recipe, lengths)

    @property
    def items(self) -> int:
        """Queries."""
        return len(self.rows)

    def sample(self) -> Sample[Group]:
        """All rows, as they are read and checked anyway; the tokens of some."""
        first = islice(self.schedule.batches(), SAMPLE_BATCHES)
        batches = [self.pick(epoch, numbers) for epoch, numbers in first]
        estimated = ["texts", "tokens"] if self.schedule.items // PLAN_SAMPLE > 1 else []
        return Sample(self.schedule, self.load, batches, estimated)

    @property
    def longest(self) -> int:
        """Of a query or a passage, with its prompt."""
        return int(max(self.settings.query_length, self.settings.passage_length))

    @property
    def load(self) -> Load:
        """Queries and passages of one epoch, a prompt each; no logits. Some rows stand for all where they are many.

        Raises ``UserError`` where no batch of the run has anything to contrast.
        """
        self._check_contrast()
        epoch = [number for _, numbers in self.schedule.epoch() for number in numbers]
        groups = self.pick(0, epoch[:: max(1, len(epoch) // PLAN_SAMPLE)])
        passages = [text for group in groups for text in group.passages]
        tokens = self.sequencer.trees([group.query for group in groups], "query").tokens
        tokens += self.sequencer.trees(passages, "passage").tokens
        each = 1 + len(passages) / len(groups)
        overhead = int(each * self.sequencer.prompts.overhead(["self"]))
        return Load(tokens * len(epoch) // len(groups), overhead, 0, self.budget, each)

    def pick(self, epoch: int, numbers: Sequence[int]) -> Sequence[Group]:
        """Each row with the passages drawn for the epoch."""
        seed, negatives = self.settings.seed, self.settings.negatives
        return [draw_group(self.rows[number], negatives, (seed, epoch, number)) for number in numbers]

    def watch(self, prepared: Prepared, folder: Path) -> Watch | None:
        """Scores on the dev set, at the lengths of the training."""
        dev = self.dev
        if dev is None:
            return None
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise UserError("`dev` is for weights that are whole in every process, not sharded ones (FSDP)")
        encoder = Encoder(prepared.decoder, self.recipe, self.sequencer, self.budget, note=self.workspace.reporter.warn)

        def encode(texts: Sequence[str], role: Role) -> Vectors:
            with autocast(self.device, self.dtype):
                vectors = encoder.encode(texts, role).vectors
            if not np.isfinite(vectors).all():
                raise LlaraError(
                    "the model's vectors of the dev set are not finite; lower `optimizer.learning_rate` and run again"
                    " with `restart=True` or another `name`"
                )
            return vectors

        def score() -> float:
            prepared.model.eval()
            found = torch.tensor(dev.score(encode), dtype=torch.float64, device=self.device)
            prepared.model.train()
            return float(self.accelerator.reduce(found, reduction="mean"))  # all processes go by the same number

        every = self.settings.dev_every or max(1, self.schedule.steps // PARTS)
        leads = self.accelerator.is_main_process
        return Watch(folder, prepared.model, dev.metric, score, every, self.settings.patience, leads)

    def _loaded(self, source: ModelSource) -> Prepared:
        """The loss never meets the vocabulary projection: processes that shared it would wait for its gradient."""
        prepared = super()._loaded(source)
        prepared.decoder.freeze_projection()
        if not checkpoints.trainable(prepared.model):
            raise UserError("nothing would be trained: fine-tuning does not reach the layers of `lora.targets`")
        return prepared

    def objective(self, prepared: Prepared) -> ContrastiveObjective:
        """InfoNCE over cosine / temperature."""
        chunk, note = self.settings.chunk_size, self.workspace.reporter.warn
        return ContrastiveObjective(
            prepared.decoder, self.recipe, self.sequencer, self.budget, self._loss, chunk, note=note
        )

    @property
    def _loss(self) -> ContrastiveLoss:
        settings = self.settings
        return ContrastiveLoss(
            settings.temperature, settings.in_batch_negatives, settings.mask_false_negatives, settings.mask_margin,
            settings.distillation, self.recipe.dims,
        )  # fmt: skip
