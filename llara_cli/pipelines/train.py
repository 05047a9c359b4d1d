"""A training run: a base model, data and an objective in, a trained model of the workspace out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator, DistributedType

from llara_cli.core.artifacts import Artifact, Build, RunSpec
from llara_cli.core.distributed import Decide, ProcessGroup, alone
from llara_cli.core.workspace import Workspace
from llara_cli.cpu import give_back_memory, resident_memory
from llara_cli.data.text_files import ignore
from llara_cli.model.architecture import dtype_name
from llara_cli.model.decoder import Decoder, choose_device, choose_dtype, refuse_attention
from llara_cli.model.float8 import refuse_without_float8
from llara_cli.model.source import ModelSource
from llara_cli.model.speed import rough_seconds
from llara_cli.training import checkpoints
from llara_cli.training.base_model import BaseModel
from llara_cli.training.config import TrainConfig
from llara_cli.training.early_stopping import EarlyStopping, TrainingPlace
from llara_cli.training.engine import open_accelerator
from llara_cli.training.history import CURVE, draw_curve
from llara_cli.training.loop import Trainer, autocast
from llara_cli.training.memory import Forwards, count_needs, fit_forwards, free_memory
from llara_cli.training.objective import Objective
from llara_cli.training.optimizers import STATE_BYTES, make_optimizer
from llara_cli.training.plan import Plan, Sample, Workload, needed_flops, probed_plan, warn_if_long
from llara_cli.training.probe import DEPTHS, Cost, cost_of, peak_memory, shrunken
from llara_cli.training.schedule import Schedule, Share, schedule_of
from llara_cli.training.trainable_model import TrainableModel, choose_computation, load_trainable

CPU_TOKENS = 2048
"""Tokens of one forward on a CPU unless ``micro_batch_tokens`` says otherwise; benchmarks/*.json have the rates."""
SAMPLE_BUDGETS = 2
"""Full forwards of each step that the plan's probe runs."""
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


@dataclass(frozen=True)
class TrainingRun(Generic[ItemT]):
    """One run, every setting chosen and everything checked that can be without weights.

    ``recorded``: what a manifest says of the settings.
    """

    workspace: Workspace
    base: BaseModel
    config: TrainConfig
    recorded: Mapping[str, Any]
    name: str
    data: TrainingData[ItemT]
    task: TrainingTask[ItemT]

    def run(self, *, restart: bool, made_for: str = "user") -> dict[str, Any]:
        """Train, or go on where an earlier run stopped, or give the finished run's result again.

        ``made_for``: who needs the model, as ``Build.finish`` has it.
        """
        source, reporter = self.base.source, self.workspace.reporter
        reporter.note(f"model: {source.name} ({source.path}), recipe {self.base.recipe.name}")
        with reporter.status("checking the model and the data"):
            self._check_device()
            self.task.check_source(source)
            run_spec = self.run_spec
        building = partial(self.workspace.build, "models", self.name, run_spec, restart=restart)
        with self._process_group.share(building) as build:
            if isinstance(build, Artifact):
                result = self.workspace.result_again(build)
                checkpoints.discard(build.path)  # left where a kill fell after the last word of the manifest
            else:
                result = self._train(build, made_for)
        self.accelerator.end_training()
        return result

    def plan(self) -> Plan:
        """What ``run`` would take, from a short probe of models with few layers; the weights are not loaded."""
        self._check_device()
        self.task.check_source(self.base.source)
        info, budget = self.base.info, self.forwards.tokens
        sample = self.data.sample(budget)
        schedule, workload = sample.schedule, sample.workload
        wanted = -(-SAMPLE_BUDGETS * budget * schedule.items // workload.tokens(schedule.items))
        samples = [items[:wanted] for items in sample.batches]
        deep = min(DEPTHS[1], info.layers)
        with self.workspace.reporter.status("measuring a few steps of models with few layers"):
            first = cost = self._cost(DEPTHS[0], samples, workload.overhead)
            give_back_memory()  # now that all is imported which a step imports, and the model is gone
            runtime = resident_memory() if self.device.type == "cpu" else 0
            if deep > DEPTHS[0]:
                cost = first.at(deep, self._cost(deep, samples, workload.overhead), info.layers)
        processes = self.accelerator.num_processes
        flops = needed_flops(info, schedule, workload, frozen_base=self.config.backend != "full")
        return probed_plan(info, cost, flops, sample, self.device, self.dtype, runtime, processes, self.forwards)

    @cached_property
    def run_spec(self) -> RunSpec:
        """What makes an equal run."""
        chosen = {
            "task": self.task.name,
            "model": self.base.source.name,
            "recipe": self.base.recipe.name,
            "dtype": dtype_name(self.dtype),
        }
        return RunSpec(
            {**self.recorded, **chosen},
            self.data.inputs(self._process_group.decide),
            {"model": self.base.source.fingerprint()},
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes that train, one or several."""
        return open_accelerator(choose_device(), self.config.track, self.workspace.root / "tracking" / self.name)

    @property
    def _process_group(self) -> ProcessGroup:
        return ProcessGroup(self.accelerator.process_index, self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = self.accelerator.device
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return choose_dtype(self.config.dtype, self.device)

    @cached_property
    def schedule(self) -> Schedule:
        """Steps and the order of the items."""
        return schedule_of(self.data.shares, self.config)

    @cached_property
    def forwards(self) -> Forwards:
        """Tokens of a forward and recomputed layers: as the settings say, else what fits the memory of a GPU."""
        execution = self.config.execution
        tokens, recompute = execution.micro_batch_tokens, execution.gradient_checkpointing
        free = free_memory(self.device)
        if free is None or None not in (tokens, recompute):
            return Forwards(tokens or CPU_TOKENS, int(recompute or False))
        least = int(self.accelerator.gather(torch.tensor([free], device=self.device)).min())
        return self._process_group.decide(
            lambda: fit_forwards(
                least,
                lambda: count_needs(self._shallow, self._static_bytes, self._autocast),
                self.base.info.layers,
                self.workspace.reporter,
                longest=self.data.longest,
                tokens=tokens,
                recompute=recompute,
            )
        )

    @property
    def execution(self) -> dict[str, Any]:
        """How it is computed: what changes the result by rounding at most."""
        return {
            "gradient_checkpointing": self.forwards.every,
            "compile": self.config.execution.compile,
            "micro_batch_tokens": self.forwards.tokens,
            "processes": self.accelerator.num_processes,
        }

    def _check_device(self) -> None:
        """Raise ``UserError`` for what the device cannot compute, before any work."""
        refuse_attention(self.config.execution.attention, self.device, self.dtype)
        if self.config.execution.compute == "float8":
            refuse_without_float8(self.device, self.dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.dtype)

    def _loaded(self, source: ModelSource) -> TrainableModel:
        # a plan loads models of the same shape: what is to be said of it is said of the model itself
        note = self.workspace.reporter.note if source is self.base.source else ignore
        model = load_trainable(self.base, self.config, self.device, self.dtype, source=source, note=note)
        self.task.adopt(model)
        return model

    def _prepared(self, source: ModelSource) -> TrainableModel:
        """A model on the device that computes as the settings say."""
        model, alone = self._loaded(source), self.accelerator.distributed_type == DistributedType.NO
        every = self.forwards.every
        choose_computation(model.decoder, self.config.execution, self.device, self.dtype, every=every, alone=alone)
        return model

    def _shallow(self, layers: int) -> Decoder:
        """A model of the same shape with so many layers, whose attention is dense and that is not compiled."""
        with TemporaryDirectory() as folder:
            return Decoder(self._loaded(shrunken(self.base.source, layers, Path(folder))).model)

    def _static_bytes(self, decoder: Decoder) -> float:
        """Weights, gradients, the optimizer's state and what the objective holds, in one process."""
        weights = sum(weight.nbytes for weight in decoder.model.parameters())
        trained = sum(weight.numel() for weight in checkpoints.trainable(decoder.model).values())
        kind, single = self.accelerator.distributed_type, torch.float32.itemsize
        of_gradients = single if kind in (DistributedType.NO, DistributedType.FSDP) else 2 * single  # DDP has buckets
        whole: float = weights + trained * (of_gradients + STATE_BYTES[self.config.optimizer.name])
        whole /= self.accelerator.num_processes if kind == DistributedType.FSDP else 1
        return whole + self.task.extra_bytes(decoder)

    def _cost(self, layers: int, samples: Sequence[Sequence[ItemT]], overhead: int) -> Cost:
        """What a model of so many layers takes for steps of ``samples``, with ``overhead`` tokens around each item."""
        with TemporaryDirectory() as folder:
            model = self._prepared(shrunken(self.base.source, layers, Path(folder)))
        optimizer = make_optimizer(list(checkpoints.trainable(model.model).values()), self.config.optimizer)
        objective = self.task.objective(model, self.forwards.tokens)
        model.model.train()

        def gradients(items: Sequence[ItemT]) -> int:
            return objective.backward(items).tokens + len(items) * overhead

        return cost_of(model.model, optimizer, [partial(gradients, items) for items in samples], self._autocast)

    def _train(self, build: Build, made_for: str) -> dict[str, Any]:
        reporter, budget = self.workspace.reporter, self.forwards.tokens
        self._warn_if_long(self.data.workload(budget))
        with reporter.status(f"loading {self.base.source.name}"):
            model = self._prepared(self.base.source)
        if self.accelerator.is_main_process:
            build.open_folder()
        place = TrainingPlace(self.accelerator, self.dtype, build.folder, budget, self.schedule.steps)
        trainer: Trainer[ItemT] = Trainer(
            accelerator=self.accelerator,
            model=model.model,
            objective=self.task.objective(model, budget),
            schedule=self.schedule,
            batch=self.data.batch,
            config=self.config,
            folder=build.folder,
            dtype=self.dtype,
            early_stopping=self.task.early_stopping(model, place),
        )
        trainer.resume()
        self._open_trackers(trainer.resumed_at)
        started = time.monotonic()
        with reporter.bar(self.task.name, self.schedule.steps) as bar:
            history = trainer.train(bar)
        result = summary(build, history, time.monotonic() - started, trainer.resumed_at)
        if trainer.early_stopping is not None:
            result["dev"] = trainer.early_stopping.restore_best()
        trainer.engine.gather(model.model)
        if self.accelerator.is_main_process:
            with reporter.status("saving the model"):
                self._finish(build, model, result, trainer.objective.execution, made_for)
        self.accelerator.wait_for_everyone()
        return result

    def _warn_if_long(self, workload: Workload) -> None:
        flops = needed_flops(self.base.info, self.schedule, workload, frozen_base=self.config.backend != "full")
        seconds = rough_seconds(flops, self.device, self.dtype) / self.accelerator.num_processes
        warn_if_long(self.workspace.reporter, seconds, self.schedule.steps)

    def _open_trackers(self, done: int) -> None:
        """Start experiment trackers; TensorBoard forgets what an earlier run logged after its ``done`` steps."""
        config = {key: value for key, value in self.run_spec.settings.items() if isinstance(value, int | float | str)}
        options = {"tensorboard": {"purge_step": done + 1}}
        self.accelerator.init_trackers("llara", config=config, init_kwargs=options)

    def _finish(
        self, build: Build, model: TrainableModel, result: dict[str, Any], execution: dict[str, Any], made_for: str
    ) -> None:
        """Save the model, close the artifact, and only then forget the checkpoint."""
        model.save(build.folder, self.dtype)
        draw_curve(result["history"], build.folder / CURVE)
        counts = {key: result[key] for key in ("steps", "texts", "tokens")}
        measured = {"peak_memory": peak_memory(self.device)}
        execution |= self.execution | {"attention": model.decoder.attention}
        artifact = build.finish(counts, result, made_for, execution=execution, measured=measured)
        checkpoints.discard(artifact.path)


def summary(build: Build, history: list[dict[str, Any]], seconds: float, resumed_at: int) -> dict[str, Any]:
    """The result of a training command, as the command line's contract names it."""
    fresh = sum(row["tokens"] for row in history[resumed_at:])
    return {
        "name": build.name,
        "path": str(build.target),
        "steps": len(history),
        "texts": sum(row["texts"] for row in history),
        "tokens": sum(row["tokens"] for row in history),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(fresh / seconds, 1) if seconds > 0 else 0.0,
        "history": history,
    }
