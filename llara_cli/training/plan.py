"""``--dry-run``: what a run will take, before any weight is loaded."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llara_cli.console import Console
from llara_cli.model.facts import ModelFacts
from llara_cli.settings import AdapterSettings
from llara_cli.training.loop import Schedule

EFFICIENCY = 0.4
"""Share of the device's matrix-product rate that training is expected to reach."""


@dataclass(frozen=True)
class Plan:
    """The plan of a training run; memory and disk in bytes."""

    device: str
    dtype: str
    trained_parameters: int
    frozen_parameters: int
    texts: int
    tokens: int
    steps: int
    flops: float
    memory: dict[str, int]
    disk: int
    expected_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values, memory with its sum."""
        return asdict(self) | {"peak_memory": sum(self.memory.values())}


@dataclass(frozen=True)
class Load:
    """What one pass over the data is made of.

    Attributes:
        text_tokens: tokens of all texts, prompts not counted.
        overhead: prompt tokens that each item adds.
        head_rows: rows of logits over the vocabulary.
        budget: tokens of one forward.
    """

    text_tokens: int
    overhead: int
    head_rows: int
    budget: int


def training_plan(
    facts: ModelFacts,
    backend: str,
    adapter: AdapterSettings,
    device: torch.device,
    dtype: torch.dtype,
    schedule: Schedule,
    load: Load,
) -> Plan:
    """Estimate from the model's shape: 6 FLOPs a parameter and token (4 where the base is frozen)."""
    full, width = backend == "full", torch.finfo(dtype).bits // 8
    trained = facts.parameters if full else adapter.rank * facts.linear_widths
    passes = schedule.steps * schedule.batch_size / schedule.items
    seen = passes * (load.text_tokens + schedule.items * load.overhead)
    flops = (6.0 if full else 4.0) * facts.linear_parameters * seen
    flops += 6.0 * passes * load.head_rows * facts.hidden_size * facts.vocabulary
    memory = {
        "weights": 4 * trained + (0 if full else facts.parameters * width),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": load.budget * facts.layers * facts.hidden_size * 17 * width,
    }
    return Plan(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        trained_parameters=trained,
        frozen_parameters=0 if full else facts.parameters,
        texts=int(passes * schedule.items),
        tokens=int(passes * load.text_tokens),
        steps=schedule.steps,
        flops=flops,
        memory=memory,
        disk=facts.parameters * width + 12 * trained,
        expected_seconds=flops / (EFFICIENCY * matmul_rate(device, dtype)),
    )


def warn_if_long(console: Console, plan: Plan) -> None:
    """Say so before a run that will take more than an hour."""
    if (hours := plan.expected_seconds / 3600) > 1:
        console.warn(f"about {hours:.1f} hours expected for {plan.steps} steps; --max-steps shortens the run")


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a square matrix product, measured for a moment."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        product = left @ left
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    del product
    return best
