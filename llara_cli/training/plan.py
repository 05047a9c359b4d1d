"""The plan of a run (``--dry-run``): memory, steps, FLOPs and time, before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import torch

from llara_cli.core.reporter import Reporter
from llara_cli.model.model_info import ModelFacts
from llara_cli.training.memory import Forwards, recomputed
from llara_cli.training.probe import Cost
from llara_cli.training.schedule import Schedule

SAMPLE_BATCHES = 5
"""Steps that the probe of the plan runs."""
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Plan:
    """The plan of a training run; memory (of one process) and disk in bytes.

    ``recomputed_layers``: layers that are recomputed in backward, to save memory.
    ``estimated``: the counts that are estimates from a part of the data.
    """

    device: str
    dtype: str
    trained_parameters: int
    frozen_parameters: int
    texts: int
    tokens: int
    steps: int
    micro_batch_tokens: int
    recomputed_layers: int
    flops: float
    memory: dict[str, int]
    disk: int
    expected_seconds: float
    estimated: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values, memory with its total."""
        return asdict(self) | {"peak_memory": sum(self.memory.values())}


@dataclass(frozen=True)
class Workload:
    """Size of one pass over the data.

    Attributes:
        text_tokens: tokens of all texts, without prompts.
        overhead: prompt tokens that each item adds.
        head_rows: rows of logits over the vocabulary.
        budget: tokens per forward.
        texts: texts per item, on average: a query has its passages.
    """

    text_tokens: int
    overhead: int
    head_rows: int
    budget: int
    texts: float = 1.0

    def tokens(self, items: int) -> int:
        """Tokens of ``items`` items, with prompts."""
        return self.text_tokens + items * self.overhead


@dataclass(frozen=True)
class Sample(Generic[ItemT]):
    """What a plan is computed from: the run's ``schedule`` and ``workload``, and the items of a few steps.

    ``estimated``: the counts that are estimates from a part of the data.
    """

    schedule: Schedule
    workload: Workload
    batches: Sequence[Sequence[ItemT]]
    estimated: Sequence[str]


def needed_flops(facts: ModelFacts, schedule: Schedule, workload: Workload, *, frozen_base: bool) -> float:
    """6 FLOPs per weight and token (4 for a frozen base), and 6 per weight of the LM head and row of logits."""
    each = 4.0 if frozen_base else 6.0
    body = each * facts.linear_parameters * workload.tokens(schedule.items)
    return schedule.epochs * (body + 6.0 * workload.head_rows * facts.hidden_size * facts.vocabulary)


def probed_plan(
    facts: ModelFacts,
    cost: Cost,
    flops: float,
    sample: Sample[Any],
    device: torch.device,
    dtype: torch.dtype,
    runtime: int,
    processes: int,
    forwards: Forwards,
) -> Plan:
    """The plan, from the cost of the whole model.

    Args:
        runtime: bytes that the process takes without a model.
    """
    schedule, workload = sample.schedule, sample.workload
    seconds = schedule.epochs * workload.tokens(schedule.items) * cost.token_seconds / processes
    parts = {name: int(getattr(cost, name)) for name in ("weights", "gradients", "optimizer", "activations")}
    return Plan(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        trained_parameters=round(cost.trained),
        frozen_parameters=round(cost.frozen),
        texts=round(schedule.epochs * schedule.items * workload.texts),
        tokens=int(schedule.epochs * workload.text_tokens),
        steps=schedule.steps,
        micro_batch_tokens=forwards.tokens,
        recomputed_layers=recomputed(facts.layers, forwards.every),
        flops=flops,
        memory=parts | {"runtime": runtime},
        disk=facts.parameters * torch.finfo(dtype).bits // 8 + parts["gradients"] + parts["optimizer"],
        expected_seconds=seconds + schedule.steps * cost.update_seconds,
        estimated=sample.estimated,
    )


def warn_if_long(reporter: Reporter, seconds: float, steps: int) -> None:
    """Warn about a run that will take more than an hour."""
    if (hours := seconds / 3600) > 1:
        reporter.warn(f"about {hours:.1f} hours expected for {steps} steps; `max_steps` shortens the run")
