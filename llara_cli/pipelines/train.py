"""A training run as an artifact: what pre-training and fine-tuning share from checked settings to saved model."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from transformers import PreTrainedModel

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact, Build, RunSpec, write_atomically
from llara_cli.core.distributed import ProcessGroup
from llara_cli.core.protocols import TrainingBackend, TrainingSetup
from llara_cli.core.workspace import Workspace
from llara_cli.cpu.allocator import give_back_memory, keep_freed_memory, resident_memory
from llara_cli.data.text_files import ignore
from llara_cli.model.architecture import dtype_name
from llara_cli.model.decoder import Decoder, choose_device, choose_dtype, refuse_attention
from llara_cli.model.float8 import refuse_without_float8
from llara_cli.model.loading import has_projection, quiet_transformers
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.recipe import RECIPE_FILE, Recipe, to_json
from llara_cli.model.source import ModelSource
from llara_cli.model.speed import rough_seconds
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training import checkpoints
from llara_cli.training.early_stopping import Watch
from llara_cli.training.engine import open_accelerator
from llara_cli.training.history import CURVE, draw_curve
from llara_cli.training.loop import Trainer, autocast
from llara_cli.training.memory import Forwards, Needs, count_needs, fit_forwards, free_memory
from llara_cli.training.objective import Objective
from llara_cli.training.optimizers import STATE_BYTES, make_optimizer
from llara_cli.training.plan import Load, Plan, Sample, needed_flops, probed_plan, warn_if_long
from llara_cli.training.probe import DEPTHS, Cost, cost_of, peak_memory, shrunken
from llara_cli.training.schedule import Schedule, Share, schedule_of

CPU_TOKENS = 2048
"""Tokens of one forward on a CPU unless ``--micro-batch-tokens`` says otherwise; benchmarks/*.json have the rates."""
SAMPLE_BUDGETS = 2
"""Full forwards of each step that the plan's probe runs."""
ItemT = TypeVar("ItemT")


@dataclass
class Prepared:
    """A model ready to train."""

    backend: TrainingBackend
    model: PreTrainedModel
    decoder: Decoder
    tokenizer: TextTokenizer
    recipe: Recipe

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Checkpoint, tokenizer and recipe into ``folder``."""
        dim = self.decoder.dim
        with quiet_transformers():
            self.backend.save(self.model, folder, dtype)
        self.tokenizer.save(folder)
        write_atomically(folder / RECIPE_FILE, json.dumps(to_json(self.recipe, dim), indent=1) + "\n")


@dataclass(frozen=True)
class TrainingRun(ABC, Generic[ItemT]):
    """One run, every setting chosen and everything checked that can be without weights; see the ``of`` of each kind."""

    workspace: Workspace
    source: ModelSource
    settings: Any
    recipe: Recipe
    facts: ModelFacts
    name: str

    task: ClassVar[str]

    @property
    @abstractmethod
    def inputs(self) -> Sequence[dict[str, Any]]:
        """What the run reads: names and digests."""

    @property
    @abstractmethod
    def items(self) -> int:
        """Texts, or queries."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens that a sequence has at most."""

    @property
    @abstractmethod
    def load(self) -> Load:
        """What one pass over the data is made of."""

    @abstractmethod
    def sample(self) -> Sample[ItemT]:
        """What the plan goes by; as little of the data is prepared for it as will do."""

    @abstractmethod
    def pick(self, epoch: int, numbers: Sequence[int]) -> Sequence[ItemT]:
        """The items of a step."""

    @abstractmethod
    def objective(self, prepared: Prepared) -> Objective[ItemT]:
        """What the gradients are of."""

    def check(self, decoder: Decoder) -> None:
        """Raise ``UserError`` for a model that cannot be trained."""
        decoder.check(self.source.path)

    def watch(self, prepared: Prepared, folder: Path) -> Watch | None:
        """Scores on a dev set while it trains, for kinds of training that have one."""
        return None

    def run(self, *, restart: bool, made_for: str = "user") -> dict[str, Any]:
        """Train, or take up where an earlier run stopped, or give the finished run's result again.

        ``made_for``: who needs the model, as ``Build.finish`` has it.
        """
        self.workspace.reporter.note(f"model: {self.source.name} ({self.source.path}), recipe {self.recipe.name}")
        with self.workspace.reporter.status("checking the model and the data"):
            self._check_device()
            self._check_weights()
            run_spec = self.run_spec
        with self._process_group.share(
            lambda: self.workspace.build("models", self.name, run_spec, restart=restart)
        ) as build:
            if isinstance(build, Artifact):
                result = self.workspace.result_again(build)
                checkpoints.discard(build.path)  # left where a kill fell after the last word of the manifest
            else:
                result = self._train(build, made_for)
        self.accelerator.end_training()
        return result

    def _check_device(self) -> None:
        """Raise ``UserError`` for what the device cannot compute, before any work."""
        refuse_attention(self.settings.execution.attention, self.device, self.dtype)
        if self.settings.execution.compute == "float8":
            refuse_without_float8(self.device, self.dtype)

    def _check_weights(self) -> None:
        """Raise ``UserError`` for a checkpoint that is not whole, before any work."""
        has_projection(self.source)

    def plan(self) -> Plan:
        """What ``run`` would do, from a short probe of models with few layers; the weights are not loaded."""
        self._check_device()
        self._check_weights()
        sample = self.sample()
        schedule, load = sample.schedule, sample.load
        wanted = -(-SAMPLE_BUDGETS * load.budget * schedule.items // load.tokens(schedule.items))
        samples = [items[:wanted] for items in sample.batches]
        deep = min(DEPTHS[1], self.facts.layers)
        with self.workspace.reporter.status("measuring a few steps of models with few layers"):
            first = cost = self._cost(DEPTHS[0], samples, load.overhead)
            give_back_memory()  # now that all is imported which a step imports, and the model is gone
            runtime = resident_memory() if self.device.type == "cpu" else 0
            if deep > DEPTHS[0]:
                cost = first.at(deep, self._cost(deep, samples, load.overhead), self.facts.layers)
        processes = self.accelerator.num_processes
        flops = needed_flops(self.facts, schedule, load, frozen_base=self.settings.backend != "full")
        return probed_plan(self.facts, cost, flops, sample, self.device, self.dtype, runtime, processes, self.forwards)

    def _cost(self, layers: int, samples: Sequence[Sequence[ItemT]], overhead: int) -> Cost:
        """What a model of so many layers takes for steps of ``samples``, with ``overhead`` tokens around each item."""
        with TemporaryDirectory() as folder:
            prepared = self._prepare(shrunken(self.source, layers, Path(folder)))
        weights = list(checkpoints.trainable(prepared.model).values())
        optimizer = make_optimizer(weights, self.settings.optimizer)
        objective = self.objective(prepared)
        prepared.model.train()

        def gradients(items: Sequence[ItemT]) -> int:
            return objective.backward(items).tokens + len(items) * overhead

        rounds = [partial(gradients, items) for items in samples]
        return cost_of(prepared.model, optimizer, rounds, lambda: autocast(self.device, self.dtype))

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes that train, one or several."""
        folder = self.workspace.root / "tracking" / self.name
        return open_accelerator(choose_device(), self.settings.track, folder)

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
        return choose_dtype(self.settings.dtype, self.device)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The base model's own tokenizer. Raises ``UserError`` where it has tokens that the model does not know."""
        with self.workspace.reporter.status(f"loading the tokenizer of {self.source.name}"):
            tokenizer = TextTokenizer.load(self.source)
            tokenizer.check_ids(self.recipe, self.facts.embedded_tokens, self.source.path)
        if warning := tokenizer.contradiction():
            self.workspace.reporter.warn_once(f"{self.source.path}: {warning}")
        return tokenizer

    @cached_property
    def schedule(self) -> Schedule:
        """Steps and the order of the items."""
        return schedule_of(self.shares, self.settings)

    @property
    def shares(self) -> Sequence[Share]:
        """The sets that the items are of: one, unless a kind of training knows several."""
        return [Share(0, self.items)]

    @property
    def recorded(self) -> dict[str, Any]:
        """What a manifest says of the settings."""
        settings: dict[str, Any] = self.settings.recorded()
        return settings

    @cached_property
    def run_spec(self) -> RunSpec:
        """What makes an equal run."""
        chosen = {
            "task": self.task,
            "model": self.source.name,
            "recipe": self.recipe.name,
            "dtype": dtype_name(self.dtype),
        }
        return RunSpec(self.recorded | chosen, self.inputs, {"model": self.source.fingerprint()})

    @property
    def budget(self) -> int:
        """Tokens of one forward."""
        return self.forwards.tokens

    @cached_property
    def forwards(self) -> Forwards:
        """What the settings say of a forward; what they leave open is chosen by the memory that a GPU has free."""
        execution = self.settings.execution
        tokens, recompute = execution.micro_batch_tokens, execution.gradient_checkpointing
        free = free_memory(self.device)
        if free is None or None not in (tokens, recompute):
            return Forwards(tokens or CPU_TOKENS, int(recompute or False))
        least = int(self.accelerator.gather(torch.tensor([free], device=self.device)).min())

        def count() -> Needs:
            return count_needs(self._shallow, self._static_bytes, lambda: autocast(self.device, self.dtype))

        return self._process_group.decide(
            lambda: fit_forwards(
                least,
                count,
                self.facts.layers,
                self.workspace.reporter,
                longest=self.longest,
                tokens=tokens,
                recompute=recompute,
            )
        )

    def _shallow(self, layers: int) -> Decoder:
        """A model of the same shape with so many layers, whose attention is dense and that is not compiled."""
        with TemporaryDirectory() as folder:
            return Decoder(self._loaded(shrunken(self.source, layers, Path(folder))).model)

    def _static_bytes(self, decoder: Decoder) -> float:
        """Weights, gradients and the optimizer's state, in one process."""
        weights = sum(weight.nbytes for weight in decoder.model.parameters())
        trained = sum(weight.numel() for weight in checkpoints.trainable(decoder.model).values())
        kind, single = self.accelerator.distributed_type, torch.float32.itemsize
        of_gradients = single if kind in (DistributedType.NO, DistributedType.FSDP) else 2 * single  # DDP has buckets
        whole: float = weights + trained * (of_gradients + STATE_BYTES[self.settings.optimizer.name])
        return whole / (self.accelerator.num_processes if kind == DistributedType.FSDP else 1)

    def _train(self, build: Build, made_for: str) -> dict[str, Any]:
        flops = needed_flops(self.facts, self.schedule, self.load, frozen_base=self.settings.backend != "full")
        seconds = rough_seconds(flops, self.device, self.dtype) / self.accelerator.num_processes
        warn_if_long(self.workspace.reporter, seconds, self.schedule.steps)
        with self.workspace.reporter.status(f"loading {self.source.name}"):
            prepared = self._prepare(self.source)
        if self.accelerator.is_main_process:
            build.open_folder()
        trainer: Trainer[ItemT] = Trainer(
            accelerator=self.accelerator,
            model=prepared.model,
            objective=self.objective(prepared),
            schedule=self.schedule,
            pick=self.pick,
            config=self.settings,
            folder=build.folder,
            dtype=self.dtype,
            watch=self.watch(prepared, build.folder),
        )
        trainer.resume()
        self._open_trackers(trainer.resumed_at)
        started = time.monotonic()
        with self.workspace.reporter.bar(self.task, self.schedule.steps) as bar:
            history = trainer.train(bar)
        result = summary(build, history, time.monotonic() - started, trainer.resumed_at)
        if trainer.watch is not None:
            result["dev"] = trainer.watch.restore_best()
        trainer.engine.gather(prepared.model)
        if self.accelerator.is_main_process:
            with self.workspace.reporter.status("saving the model"):
                self._finish(build, prepared, result, trainer.objective.execution, made_for)
        self.accelerator.wait_for_everyone()
        return result

    def _open_trackers(self, done: int) -> None:
        """Start what ``--track`` names; TensorBoard forgets what an earlier run logged after its ``done`` steps."""
        config = {key: value for key, value in self.run_spec.settings.items() if isinstance(value, int | float | str)}
        options = {"tensorboard": {"purge_step": done + 1}}
        self.accelerator.init_trackers("llara", config=config, init_kwargs=options)

    def _finish(
        self, build: Build, prepared: Prepared, result: dict[str, Any], execution: dict[str, Any], made_for: str
    ) -> None:
        """Save the model, close the artifact, and only then forget the checkpoint."""
        prepared.save(build.folder, self.dtype)
        draw_curve(result["history"], build.folder / CURVE)
        counts = {key: result[key] for key in ("steps", "texts", "tokens")}
        measured = {"peak_memory": peak_memory(self.device)}
        execution |= self.execution | {"attention": prepared.decoder.attention}
        artifact = build.finish(counts, result, made_for, execution=execution, measured=measured)
        checkpoints.discard(artifact.path)

    @property
    def execution(self) -> dict[str, Any]:
        """How it is computed: what changes the result by float noise at most."""
        return {
            "gradient_checkpointing": self.forwards.every,
            "compile": self.settings.execution.compile,
            "micro_batch_tokens": self.budget,
            "processes": self.accelerator.num_processes,
        }

    def _prepare(self, source: ModelSource) -> Prepared:
        """A model on the device that computes as the settings say."""
        prepared = self._loaded(source)
        self._choose_computation(prepared.decoder)
        return prepared

    def _loaded(self, source: ModelSource) -> Prepared:
        """Load a model through the training backend and move it to the device."""
        seed = self.settings.seed
        backend: TrainingBackend = registry.load("training", self.settings.backend)()
        tokenizer = self.tokenizer.with_tokens(())
        adapter, bf16 = self.settings.lora, self.settings.optimizer.weights == "bf16"
        # a plan loads models of the same shape: what is to be said of it is said of the model itself
        note = self.workspace.reporter.note if source is self.source else ignore
        setup = TrainingSetup(self.dtype, self.recipe.new_tokens, seed, adapter, bf16, note)
        torch.manual_seed(seed)  # adapters start at random: a resumed run must start at the same
        model = backend.load(source, tokenizer, setup)
        model.to(self.device)
        if self.device.type == "cpu":  # not before: loading frees what is not needed again
            keep_freed_memory()
        decoder = Decoder(model)
        self.check(decoder)
        return Prepared(backend, model, decoder, tokenizer, self.recipe)

    def _choose_computation(self, decoder: Decoder) -> None:
        """Let the decoder compute as the settings say. Raises ``UserError`` for what it cannot do."""
        execution, recompute_every = self.settings.execution, self.forwards.every
        with autocast(self.device, self.dtype):
            decoder.use_attention(execution.attention)
        if execution.compute == "float8":
            decoder.multiply_in_float8()
        if recompute_every:
            decoder.recompute_in_backward(recompute_every)
        if execution.compile:
            decoder.compile_layers()
        alone = self.accelerator.distributed_type == DistributedType.NO
        if alone and not (recompute_every or execution.compile):
            decoder.train_lean()


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
