"""The interfaces of a training run's parts: the data that it learns from, and the task that it trains for."""

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
    """What is learned from: texts, or queries with their passages."""

    def inputs(self, decide: Decide = alone) -> Sequence[dict[str, Any]]:
        """What is read: names and digests, which the first process computes for all, by ``decide``."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompts included."""

    @property
    def shares(self) -> Sequence[Share]:
        """The sets that the items are of."""

    def workload(self, budget: int) -> Workload:
        """What one pass over the data takes, in forwards of ``budget`` tokens. Raises ``UserError`` for bad data."""

    def sample(self, budget: int) -> Sample[ItemT]:
        """What a plan goes by; only as much of the data is prepared for it as it takes."""

    def batch(self, epoch: int, numbers: Sequence[int]) -> Sequence[ItemT]:
        """The items of a step."""


class TrainingTask(Protocol[ItemT_contra]):
    """What is trained for: the objective, and what a model must have for it."""

    name: ClassVar[str]

    def check_source(self, source: ModelSource) -> None:
        """Raise ``UserError`` for a checkpoint that cannot be trained so, before any work."""

    def adopt(self, model: TrainableModel) -> None:
        """Get a loaded model ready. Raises ``UserError`` for one that cannot be trained so."""

    def objective(self, model: TrainableModel, budget: int) -> Objective[ItemT_contra]:
        """The loss, in forwards of ``budget`` tokens."""

    def extra_bytes(self, decoder: Decoder) -> int:
        """Memory that the objective takes whatever the number of tokens."""

    def early_stopping(self, model: TrainableModel, place: TrainingPlace) -> EarlyStopping | None:
        """Evaluation on a dev set while it trains; None: there is none."""
