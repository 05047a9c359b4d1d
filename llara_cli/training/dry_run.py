"""The dry run: plans a training run from measurements on models with few layers, without loading the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from llara_cli.cpu import give_back_memory, resident_memory
from llara_cli.training import checkpoints
from llara_cli.training.optimizers import make_optimizer
from llara_cli.training.plan import Plan, Sample, needed_flops, probed_plan
from llara_cli.training.preparation import Preparation
from llara_cli.training.probe import DEPTHS, Cost, cost_of, shrunken
from llara_cli.training.task import ItemT

SAMPLE_BUDGETS = 2
"""Full forwards of each step that the plan's probe runs."""


def measured_plan(preparation: Preparation, sample: Sample[ItemT]) -> Plan:
    """The run's cost, from training models of two depths on ``sample``."""
    info, budget = preparation.base.info, preparation.forwards.tokens
    schedule, workload = sample.schedule, sample.workload
    items_per_step = -(-SAMPLE_BUDGETS * budget * schedule.items // workload.tokens(schedule.items))
    steps = [items[:items_per_step] for items in sample.batches]
    deep = min(DEPTHS[1], info.layers)
    with preparation.reporter.status("measuring a few steps of models with few layers"):
        first = cost = _cost(preparation, DEPTHS[0], steps, workload.overhead)
        give_back_memory()  # now that a step's imports are done, and the model is freed
        runtime = resident_memory() if preparation.device.type == "cpu" else 0
        if deep > DEPTHS[0]:
            cost = first.at(deep, _cost(preparation, deep, steps, workload.overhead), info.layers)
    flops = needed_flops(info, schedule, workload, frozen_base=preparation.config.backend != "full")
    return probed_plan(
        info, cost, flops, sample, preparation.device, preparation.dtype, runtime,
        preparation.accelerator.num_processes, preparation.forwards,
    )  # fmt: skip


def _cost(preparation: Preparation, layers: int, steps: Sequence[Sequence[ItemT]], overhead: int) -> Cost:
    """The cost of ``steps`` for a model of ``layers`` layers, with ``overhead`` tokens around each item."""
    with TemporaryDirectory() as folder:
        model = preparation.load(shrunken(preparation.base.source, layers, Path(folder)))
    optimizer = make_optimizer(list(checkpoints.trainable(model.model).values()), preparation.config.optimizer)
    objective = preparation.task.objective(model, preparation.forwards.tokens)
    model.model.train()

    def gradients(items: Sequence[ItemT]) -> int:
        return objective.backward(items).tokens + len(items) * overhead

    return cost_of(model.model, optimizer, [partial(gradients, items) for items in steps], preparation.autocast)
