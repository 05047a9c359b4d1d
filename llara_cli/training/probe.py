"""Measures training for a plan: a few steps of models of two depths give the cost of the whole model.

Two models with the configuration of the real one, few layers and random weights are trained for a moment and measured;
their difference is the cost of a layer. No weights are loaded, and everything that changes the cost (backend,
optimizer, layout, lengths, attention) is measured.
"""

from __future__ import annotations

import gc
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llara_cli.cpu import give_back_memory, gradient_dtype, resident_memory
from llara_cli.model.loading import load_config, model_of_shapes, quiet_transformers
from llara_cli.model.source import ModelSource
from llara_cli.training.checkpoints import trainable
from llara_cli.training.optimizers import uncompiled_on_cpu

DEPTHS = (1, 5)
LOOK_SECONDS = 0.005
_SLACK = 1 << 24
"""Bytes by which memory may grow between two measurements."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Cost of a model: seconds per token for gradients and per update, bytes by part, parameters by kind."""

    token_seconds: float
    update_seconds: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    trained: float
    frozen: float

    def at(self, depth: int, other: Cost, layers: int) -> Cost:
        """Cost of a model of ``layers`` layers, from this of ``DEPTHS[0]`` layers and ``other`` of ``depth``."""
        share = (layers - DEPTHS[0]) / (depth - DEPTHS[0])
        values = {name: value + share * (getattr(other, name) - value) for name, value in vars(self).items()}
        return Cost(**values)


def shrunken(source: ModelSource, layers: int, folder: Path) -> ModelSource:
    """A model of the same shape with fewer layers and random weights, in ``folder``."""
    config = load_config(source)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if source.base is not None:  # an adapter may have more embeddings
        text.vocab_size = len(model_of_shapes(source).get_input_embeddings().weight)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    vars(config).pop("quantization_config", None)
    with quiet_transformers(), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=source.remote_code
        )
    model.config._name_or_path = ""
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    with quiet_transformers():
        model.save_pretrained(folder)
    return ModelSource(source.name, str(folder), saved_recipe=source.saved_recipe, remote_code=source.remote_code)


def cost_of(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rounds: Sequence[Callable[[], int]],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Cost:
    """Measure steps of the optimizer.

    Args:
        rounds: each computes a step's gradients and returns its number of tokens.
    """
    device = next(model.parameters()).device
    weights = list(trainable(model).values())
    with autocast():
        rounds[0]()  # warm-up: loads libraries, and weights from disk
    optimizer.zero_grad(set_to_none=True)
    token, update = [], []
    with quick_collections(), Growth(device) as growth:
        for gradients in rounds:
            tokens, seconds = _timed(gradients, device, autocast)
            token.append(seconds / tokens)
            update.append(_timed(optimizer.step, device, lambda: uncompiled_on_cpu(device))[1])
            optimizer.zero_grad(set_to_none=True)
    summed = sum(weight.numel() * gradient_dtype(weight).itemsize for weight in weights)
    state = sum(_state_bytes(optimizer.state.get(weight, {}).values()) for weight in weights)
    return Cost(
        median(token),
        min(update),
        sum(weight.nbytes for weight in model.parameters()),
        summed,
        state,
        growth.peak - summed - state,
        sum(weight.numel() for weight in weights),
        sum(_count(weight) for weight in model.parameters()) - sum(weight.numel() for weight in weights),
    )


@contextmanager
def quick_collections() -> Iterator[None]:
    """Collect garbage once, then only among new objects, not among the hundreds of thousands of objects of imported
    libraries.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _timed(
    function: Callable[[], T],
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> tuple[T, float]:
    gc.collect()
    started = time.perf_counter()
    with context():
        result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def _count(weight: Tensor) -> int:
    """Elements of a weight; a four-bit one has two per byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def _state_bytes(state: Sequence[Any]) -> int:
    return sum(value.nbytes for value in state if isinstance(value, Tensor))


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process so far, in bytes: of its GPU, else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if peak:  # not `resource`: on Linux its value is at least what the parent held when it started this process
        return int(peak[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> bool:
    """Reset the system's record of this process' peak memory (Linux); returns whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_memory(torch.device("cpu")) < resident_memory() + _SLACK  # some sandboxes ignore the write


class Growth:
    """Context manager: ``peak`` is the most bytes that memory grew by inside it; of a GPU by torch's count, else of the
    process by the system's, polled if the system records no peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak = 0
        self._device = device
        self._done = Event()
        self._watcher: Thread | None = None

    def __enter__(self) -> Growth:
        give_back_memory()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = resident_memory()
            if not forget_peak():
                self._watcher = Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._watcher is None:
            self.peak = peak_memory(self._device) - self._before
        else:
            self._done.set()
            self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self.peak = max(self.peak, resident_memory() - self._before)
