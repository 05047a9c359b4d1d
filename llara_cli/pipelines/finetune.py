"""``finetune``: training rows and a model in, a contrastively trained model of the workspace out."""

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

from llara_cli.core.distributed import Decide, alone
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.input_digests import input_record
from llara_cli.core.protocols import Role, Vectors
from llara_cli.core.reporter import Reporter
from llara_cli.core.workspace import Workspace
from llara_cli.data.training_rows import TrainingRow, read_training_rows, training_files
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.loading import has_projection
from llara_cli.model.prompts import ASYMMETRIC, SYMMETRIC
from llara_cli.model.recipe import Recipe
from llara_cli.model.source import ModelSource
from llara_cli.pipelines.train import TrainingRun
from llara_cli.training import checkpoints
from llara_cli.training.base_model import BaseModel, choose_recipe, default_model_name, read_info
from llara_cli.training.config import FinetuneConfig
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.early_stopping import EVALUATIONS, EarlyStopping, JudgedQueries, TrainingPlace
from llara_cli.training.groups import Group, draw_group
from llara_cli.training.info_nce import ContrastiveLoss, contrasts
from llara_cli.training.loop import autocast
from llara_cli.training.plan import SAMPLE_BATCHES, Sample, Workload
from llara_cli.training.schedule import Schedule, Share, schedule_of
from llara_cli.training.trainable_model import TrainableModel

PLAN_SAMPLE = 256
"""Rows that the plan tokenizes, and extrapolates from."""


@dataclass(frozen=True)
class TrainingSet:
    """A training file or folder; an epoch contains its rows ``weight`` times."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, argument: str) -> TrainingSet:
        """``rows.jsonl``, or ``rows.jsonl:2`` with a weight. Raises ``UserError`` for a bad weight."""
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


def finetuning_round(
    workspace: Workspace,
    source: ModelSource,
    train: Sequence[TrainingSet],
    config: FinetuneConfig,
    name: str | None,
    dev: JudgedQueries | None = None,
) -> TrainingRun[Group]:
    """A fine-tuning run with all open settings chosen; ``dev`` scores the model during training.

    Raises ``UserError`` for the caller's mistakes.
    """
    reporter = workspace.reporter
    recipe = choose_recipe(config, source)
    for each in train:
        training_files(each.path)
    info = read_info(source, reporter)
    recipe = choose_roles(recipe, config, info.hidden_size)
    config = config.fitted(info.parameters)
    base = BaseModel(source, recipe, info, reporter)
    base.refuse_length("query_length", config.query_length)
    base.refuse_length("passage_length", config.passage_length)
    name = name or default_model_name(source.name, recipe.name, [str(each.path) for each in train], config, "-ft")
    recorded = config.recorded() | {"set_weights": tuple(each.weight for each in train)}
    data = ContrastiveData(base, train, config, reporter, dev)
    return TrainingRun(workspace, base, config, recorded, name, data, ContrastiveTask(data, reporter, dev))


def choose_roles(recipe: Recipe, config: FinetuneConfig, hidden_size: int) -> Recipe:
    """The recipe with the roles and widths of the settings; those left out stay as they are.

    The full width is always among the widths, as vectors that are not cut have it. Raises ``UserError`` for a width
    above the model's.
    """
    if config.symmetric is not None:
        recipe = replace(recipe, roles=dict(SYMMETRIC if config.symmetric else ASYMMETRIC))
    if not config.dims:
        return recipe
    if max(config.dims) > hidden_size:
        raise UserError(f"`dims={max(config.dims)}` is above the model's width of {hidden_size}")
    return replace(recipe, dims=tuple(sorted({*config.dims, hidden_size}, reverse=True)))


@dataclass(frozen=True)
class ContrastiveData:
    """Queries with their positives and hard negatives."""

    base: BaseModel
    train: Sequence[TrainingSet]
    config: FinetuneConfig
    reporter: Reporter
    dev: JudgedQueries | None = None

    def inputs(self, decide: Decide = alone) -> Sequence[dict[str, Any]]:
        """The training files and those of the dev set."""
        inputs: list[dict[str, Any]] = decide(self._read_inputs)
        return inputs

    def _read_inputs(self) -> list[dict[str, Any]]:
        files = [input_record(file) for each in self.train for file in training_files(each.path)]
        return files + (self.dev.inputs() if self.dev else [])

    @cached_property
    def sets(self) -> list[list[TrainingRow]]:
        """The rows of each set. Raises ``UserError`` naming file and line of a bad one."""
        scored, note = self.config.distillation > 0, self.reporter.note
        sets = [list(read_training_rows(each.path, scored=scored, note=note)) for each in self.train]
        rows = [row for rows in sets for row in rows]
        self._check_negatives(rows)
        texts = [text for row in rows for text in (row.query, *row.positives, *row.negatives)]
        if empty := sum(not text.strip() for text in texts):
            self.reporter.warn(f"{empty} of {len(texts)} texts are empty: embedded as the bare prompt")
        return sets

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """All training rows, set by set."""
        return [row for rows in self.sets for row in rows]

    @property
    def shares(self) -> Sequence[Share]:
        """One share per training set."""
        sizes = [len(rows) for rows in self.sets]
        pairs = zip(sizes, self.train, strict=True)
        return [Share(sum(sizes[:number]), size, each.weight) for number, (size, each) in enumerate(pairs)]

    @cached_property
    def schedule(self) -> Schedule:
        """Steps and the order of the rows."""
        return schedule_of(self.shares, self.config)

    @property
    def longest(self) -> int:
        """Tokens of the longest query or passage, prompt included."""
        return max(self.config.query_length, self.config.passage_length)

    @cached_property
    def sequencer(self) -> Sequencer:
        """Turns texts into sequences. Raises ``UserError`` for a length that leaves no room for a text."""
        lengths: dict[Role, int] = {"query": self.config.query_length, "passage": self.config.passage_length}
        return Sequencer(self.base.tokenizer.with_tokens(self.base.recipe.new_tokens), self.base.recipe, lengths)

    @property
    def loss(self) -> ContrastiveLoss:
        """InfoNCE with its settings."""
        config = self.config
        return ContrastiveLoss(
            config.temperature, config.in_batch_negatives, config.mask_false_negatives, config.mask_margin,
            config.distillation, self.base.recipe.dims,
        )  # fmt: skip

    def workload(self, budget: int) -> Workload:
        """Queries and passages of one epoch, with a prompt each, and no logits; estimated from some of many rows.

        Raises ``UserError`` if no batch of the run has anything to contrast.
        """
        self._check_contrast()
        epoch = [number for _, numbers in self.schedule.epoch() for number in numbers]
        groups = self.batch(0, epoch[:: max(1, len(epoch) // PLAN_SAMPLE)])
        passages = [text for group in groups for text in group.passages]
        tokens = self.sequencer.trees([group.query for group in groups], "query").tokens
        tokens += self.sequencer.trees(passages, "passage").tokens
        texts = 1 + len(passages) / len(groups)
        overhead = int(texts * self.sequencer.prompts.overhead(["self"]))
        return Workload(tokens * len(epoch) // len(groups), overhead, 0, budget, texts)

    def sample(self, budget: int) -> Sample[Group]:
        """All rows, which are read for checks anyway, and the tokens of some."""
        first = islice(self.schedule.batches(), SAMPLE_BATCHES)
        batches = [self.batch(epoch, numbers) for epoch, numbers in first]
        estimated = ["texts", "tokens"] if self.schedule.items // PLAN_SAMPLE > 1 else []
        return Sample(self.schedule, self.workload(budget), batches, estimated)

    def batch(self, epoch: int, numbers: Sequence[int]) -> Sequence[Group]:
        """The rows, each with the passages drawn for the epoch."""
        seed, negatives = self.config.seed, self.config.negatives
        return [draw_group(self.rows[number], negatives, (seed, epoch, number)) for number in numbers]

    def _check_negatives(self, rows: Sequence[TrainingRow]) -> None:
        """Warn of rows without negatives. Raises ``UserError`` if no row has any."""
        config = self.config
        if config.in_batch_negatives and config.batch_size != 1:
            return
        alone = sum(not row.negatives for row in rows) if config.negatives else len(rows)
        why = "`batch_size=1`" if config.in_batch_negatives else "`in_batch_negatives=False`"
        if alone == len(rows):
            raise UserError(
                f"no row has hard negatives, and {why} leaves no others to contrast with: mine some with llara mine"
            )
        if alone:
            self.reporter.warn(f"{alone} of {len(rows)} rows have no hard negatives, and {why} makes them useless")

    def _check_contrast(self) -> None:
        """Raise ``UserError`` if no batch has a passage to contrast a query with."""
        loss = self.loss
        if loss.distillation:  # distillation uses a row's own scores, whatever is masked
            return
        if not any(contrasts(loss.static_mask(self.batch(*numbers))) for numbers in self.schedule.batches()):
            raise UserError(
                "no batch has anything to contrast: every passage beside a query's positive is masked as a copy of one "
                "of its positives, or there is none; give rows with negatives, more rows, or a larger `batch_size`"
            )


@dataclass(frozen=True)
class ContrastiveTask:
    """InfoNCE on queries with their passages; ``dev`` scores the model during training."""

    data: ContrastiveData
    reporter: Reporter
    dev: JudgedQueries | None = None

    name: ClassVar[str] = "finetune"

    def check_source(self, source: ModelSource) -> None:
        """Raise ``UserError`` for an incomplete checkpoint; it needs no vocabulary projection."""
        has_projection(source)

    def adopt(self, model: TrainableModel) -> None:
        """Freeze the vocabulary projection: it gets no gradient from this loss, and DDP would wait for one.

        Raises ``UserError`` if nothing else would be trained.
        """
        model.decoder.freeze_projection()
        if not checkpoints.trainable(model.model):
            raise UserError("nothing would be trained: fine-tuning does not reach the layers of `lora.targets`")

    def objective(self, model: TrainableModel, budget: int) -> ContrastiveObjective:
        """InfoNCE over cosine similarity / temperature."""
        data = self.data
        return ContrastiveObjective(
            model.decoder, data.base.recipe, data.sequencer, budget, data.loss, data.config.chunk_size,
            note=self.reporter.warn,
        )  # fmt: skip

    def extra_bytes(self, decoder: Decoder) -> int:
        """None."""
        return 0

    def early_stopping(self, model: TrainableModel, place: TrainingPlace) -> EarlyStopping | None:
        """Evaluation on the dev set, with the lengths of the training."""
        dev, config = self.dev, self.data.config
        if dev is None:
            return None
        accelerator, dtype = place.accelerator, place.dtype
        if accelerator.distributed_type == DistributedType.FSDP:
            raise UserError("`dev` needs the whole weights in every process: it does not work with sharded ones (FSDP)")
        encoder = Encoder(
            model.decoder, self.data.base.recipe, self.data.sequencer, place.budget, note=self.reporter.warn
        )
        device: torch.device = accelerator.device

        def encode(texts: Sequence[str], role: Role) -> Vectors:
            with autocast(device, dtype):
                vectors = encoder.encode(texts, role).vectors
            if not np.isfinite(vectors).all():
                raise LlaraError(
                    "the model's vectors of the dev set are not finite; lower `optimizer.learning_rate` and run again"
                    " with `restart=True` or another `name`"
                )
            return vectors

        def score() -> float:
            model.model.eval()
            local = torch.tensor(dev.score(encode), dtype=torch.float64, device=device)
            model.model.train()
            return float(accelerator.reduce(local, reduction="mean"))  # the same number in all processes

        every = config.dev_every or max(1, place.steps // EVALUATIONS)
        writes = accelerator.is_main_process
        return EarlyStopping(place.folder, model.model, dev.metric, score, every, config.patience, writes)
