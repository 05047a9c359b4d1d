"""Interfaces of the parts of a training run: its data and its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from llara_cli.core.distributed import Decide, alone
from llara_cli.model.decoder import Decoder
from llara_cli.model.source import ModelSource
from llara_cli.training.early_stopping import EarlyStopping, TrainingPlace
from llara_cli.training.objective import Objective
from llara_cli.training.plan import Sample, Workload
from llara_cli.training.schedule import Share
from llara_cli.training.trainable_model import TrainableModel

ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


class TrainingData(Protocol[ItemT]):
    """Training data: texts, or queries with their passages."""

    def inputs(self, decide: Decide = alone) -> Sequence[dict[str, Any]]:
        """The input files: names and digests, computed by the first process for all, by ``decide``."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompts included."""

    @property
    def shares(self) -> Sequence[Share]:
        """The data sets of the items."""

    def workload(self, budget: int) -> Workload:
        """The size of one pass over the data, in forwards of ``budget`` tokens. Raises ``UserError`` for bad data."""

    def sample(self, budget: int) -> Sample[ItemT]:
        """The sample for a plan; only as much of the data is prepared as it needs."""

    def batch(self, epoch: int, numbers: Sequence[int]) -> Sequence[ItemT]:
        """The items of a step."""


class TrainingTask(Protocol[ItemT_contra]):
    """What a model is trained for: the objective, and what it needs of a model."""

    name: ClassVar[str]

    def check_source(self, source: ModelSource) -> None:
        """Raise ``UserError`` for a checkpoint that this task cannot train, before any work."""

    def adopt(self, model: TrainableModel) -> None:
        """Prepare a loaded model. Raises ``UserError`` for one that this task cannot train."""

    def objective(self, model: TrainableModel, budget: int) -> Objective[ItemT_contra]:
        """The objective, in forwards of ``budget`` tokens."""

    def extra_bytes(self, decoder: Decoder) -> int:
        """Bytes that the objective takes, independent of tokens."""

    def early_stopping(self, model: TrainableModel, place: TrainingPlace) -> EarlyStopping | None:
        """Evaluation on a dev set during training, if any."""
