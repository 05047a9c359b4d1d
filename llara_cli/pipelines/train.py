"""A training run: a base model, data and an objective in, a trained model of the workspace out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic

import torch
from accelerate import Accelerator

from llara_cli.core.artifacts import Artifact, Build, RunSpec
from llara_cli.core.workspace import Workspace
from llara_cli.model.architecture import dtype_name
from llara_cli.model.decoder import choose_device
from llara_cli.model.speed import rough_seconds
from llara_cli.training import checkpoints
from llara_cli.training.base_model import BaseModel
from llara_cli.training.config import TrainConfig
from llara_cli.training.dry_run import measured_plan
from llara_cli.training.early_stopping import TrainingPlace
from llara_cli.training.engine import open_accelerator
from llara_cli.training.history import CURVE, draw_curve
from llara_cli.training.loop import Trainer
from llara_cli.training.memory import free_memory
from llara_cli.training.plan import Plan, Workload, needed_flops, warn_if_long
from llara_cli.training.preparation import Preparation
from llara_cli.training.probe import peak_memory
from llara_cli.training.schedule import Schedule, schedule_of
from llara_cli.training.task import ItemT, TrainingData, TrainingTask
from llara_cli.training.trainable_model import TrainableModel


@dataclass(frozen=True)
class TrainingRun(Generic[ItemT]):
    """A training run, with all settings chosen.

    Attributes:
        recorded: the settings as in the manifest.
        name: name of the trained model.
        free_memory: returns a device's free bytes, which forwards must fit; None: no limit.
    """

    workspace: Workspace
    base: BaseModel
    config: TrainConfig
    recorded: Mapping[str, Any]
    name: str
    data: TrainingData[ItemT]
    task: TrainingTask[ItemT]
    free_memory: Callable[[torch.device], int | None] = free_memory

    def run(self, *, restart: bool, made_for: str = "user") -> dict[str, Any]:
        """Train, resuming an earlier run, or return the result of a finished one.

        ``made_for``: see ``Build.finish``.
        """
        source, reporter = self.base.source, self.workspace.reporter
        reporter.note(f"model: {source.name} ({source.path}), recipe {self.base.recipe.name}")
        with reporter.status("checking the model and the data"):
            self._check()
            run_spec = self.run_spec
        building = partial(self.workspace.build, "models", self.name, run_spec, restart=restart)
        with self.preparation.process_group.share(building) as build:
            if isinstance(build, Artifact):
                result = self.workspace.result_again(build)
                checkpoints.discard(build.path)  # left by a kill right after the manifest was written
            else:
                result = self._train(build, made_for)
        self.accelerator.end_training()
        return result

    def plan(self) -> Plan:
        """Cost of ``run``, from a short probe of models with few layers; the weights are not loaded."""
        self._check()
        return measured_plan(self.preparation, self.data.sample(self.preparation.forwards.tokens))

    @cached_property
    def run_spec(self) -> RunSpec:
        """Settings and inputs that identify the run."""
        chosen = {
            "task": self.task.name,
            "model": self.base.source.name,
            "recipe": self.base.recipe.name,
            "dtype": dtype_name(self.preparation.dtype),
        }
        return RunSpec(
            {**self.recorded, **chosen},
            self.data.inputs(self.preparation.process_group.decide),
            {"model": self.base.source.fingerprint()},
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes that train, one or several."""
        return open_accelerator(choose_device(), self.config.track, self.workspace.root / "tracking" / self.name)

    @cached_property
    def preparation(self) -> Preparation:
        """Prepares the base model for the task on this process' device."""
        return Preparation(
            self.base, self.config, self.task, self.accelerator, self.data.longest, self.workspace.reporter,
            self.free_memory,
        )  # fmt: skip

    @cached_property
    def schedule(self) -> Schedule:
        """Steps and the order of the items."""
        return schedule_of(self.data.shares, self.config)

    def _check(self) -> None:
        """Raise ``UserError`` for what the device cannot compute or the task cannot train, before any work."""
        self.preparation.check_device()
        self.task.check_source(self.base.source)

    def _train(self, build: Build, made_for: str) -> dict[str, Any]:
        reporter, budget = self.workspace.reporter, self.preparation.forwards.tokens
        self._warn_if_long(self.data.workload(budget))
        with reporter.status(f"loading {self.base.source.name}"):
            model = self.preparation.load(self.base.source)
        if self.accelerator.is_main_process:
            build.open_folder()
        place = TrainingPlace(self.accelerator, self.preparation.dtype, build.folder, budget, self.schedule.steps)
        trainer: Trainer[ItemT] = Trainer(
            accelerator=self.accelerator,
            model=model.model,
            objective=self.task.objective(model, budget),
            schedule=self.schedule,
            batch=self.data.batch,
            config=self.config,
            folder=build.folder,
            dtype=self.preparation.dtype,
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
        seconds = rough_seconds(flops, self.preparation.device, self.preparation.dtype) / self.accelerator.num_processes
        warn_if_long(self.workspace.reporter, seconds, self.schedule.steps)

    def _open_trackers(self, done: int) -> None:
        """Start experiment trackers; TensorBoard drops what an earlier run logged after its first ``done`` steps."""
        config = {key: value for key, value in self.run_spec.settings.items() if isinstance(value, int | float | str)}
        options = {"tensorboard": {"purge_step": done + 1}}
        self.accelerator.init_trackers("llara", config=config, init_kwargs=options)

    def _finish(
        self, build: Build, model: TrainableModel, result: dict[str, Any], execution: dict[str, Any], made_for: str
    ) -> None:
        """Save the model, finish the artifact, and only then discard the checkpoint."""
        model.save(build.folder, self.preparation.dtype)
        draw_curve(result["history"], build.folder / CURVE)
        counts = {key: result[key] for key in ("steps", "texts", "tokens")}
        measured = {"peak_memory": peak_memory(self.preparation.device)}
        execution |= self.preparation.execution | {"attention": model.decoder.attention}
        artifact = build.finish(counts, result, made_for, execution=execution, measured=measured)
        checkpoints.discard(artifact.path)


def summary(build: Build, history: list[dict[str, Any]], seconds: float, resumed_at: int) -> dict[str, Any]:
    """The result of a training command."""
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
