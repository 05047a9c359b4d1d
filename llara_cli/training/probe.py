"""A short probe: the run's own backend and objective on models of two depths tell what the whole one will take.

Depth 1 and a little more are built with the model's configuration and random weights, trained for a moment, measured;
what they differ by is a layer. So nothing of the model is loaded, and whatever changes the cost (backend, optimiser,
layout, lengths, attention) is in the figures.
"""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llara_cli.model.loading import load_config, quiet_transformers
from llara_cli.model.source import ModelSource
from llara_cli.training.checkpoints import trainable
from llara_cli.training.losses import LOGITS_BYTES
from llara_cli.training.optimisers import uncompiled_on_cpu

DEPTHS = (1, 5)
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What a model takes: seconds of the sample's gradients and of an update, bytes by part, parameters by kind."""

    gradients_seconds: float
    update_seconds: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    trained: float
    frozen: float

    def at(self, depth: int, other: Cost, layers: int) -> Cost:
        """Of a model of ``layers`` layers, where this is of ``DEPTHS[0]`` layers and ``other`` of ``depth``."""
        share = (layers - DEPTHS[0]) / (depth - DEPTHS[0])
        values = {name: mine + share * (getattr(other, name) - mine) for name, mine in vars(self).items()}
        return Cost(**values)


def shrunken(source: ModelSource, layers: int, folder: Path) -> ModelSource:
    """A model of the same shape with fewer layers and random weights, in ``folder``."""
    config = load_config(source)
    text = config.get_text_config()
    text.num_hidden_layers = layers
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
    optimiser: torch.optim.Optimizer,
    gradients: Callable[[], object],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Cost:
    """Measure a few rounds of ``gradients`` and of the optimiser's step."""
    device = next(model.parameters()).device
    weights = list(trainable(model).values())
    with Activations(model) as activations:
        _timed(gradients, device, autocast)
    update = [_timed(optimiser.step, device, lambda: uncompiled_on_cpu(device))]
    seconds = []
    for _ in range(REPEATS):
        optimiser.zero_grad(set_to_none=True)
        seconds.append(_timed(gradients, device, autocast))
        update.append(_timed(optimiser.step, device, lambda: uncompiled_on_cpu(device)))
    size = {id(weight): weight.nbytes for weight in model.parameters()}
    return Cost(
        min(seconds),
        min(update),
        sum(size.values()),
        sum(weight.nbytes for weight in weights),
        sum(_state_bytes(optimiser.state.get(weight, {}).values()) for weight in weights),
        activations.peak + _head_bytes(model),
        sum(weight.numel() for weight in weights),
        sum(_count(weight) for weight in model.parameters()) - sum(weight.numel() for weight in weights),
    )


def _timed(
    function: Callable[[], object],
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
) -> float:
    gc.collect()
    started = time.perf_counter()
    if context is None:
        function()
    else:
        with context():
            function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _count(weight: Tensor) -> int:
    """Numbers in a weight; a four-bit one holds two in a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def _state_bytes(state: Sequence[Any]) -> int:
    return sum(value.nbytes for value in state if isinstance(value, Tensor))


def _head_bytes(model: PreTrainedModel) -> int:
    """What the losses hold for a moment: a chunk of logits with its log-softmax and gradient, and what is as large as
    the vocabulary: the projection's gradient as gathered and as handed over, the embedding's.
    """
    weight = model.get_output_embeddings().weight
    return 3 * LOGITS_BYTES + (3 * weight.nbytes if weight.requires_grad else 0)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has taken so far: on a GPU of its memory, else of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Activations:
    """A context: ``peak`` is the most bytes that autograd held at once, weights not counted."""

    def __init__(self, model: nn.Module) -> None:
        self.peak = 0
        self._held = 0
        self._users: dict[int, int] = {}
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> Activations:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Held:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._weights:
            return _Held(tensor, lambda: None)
        self._users[place] = self._users.get(place, 0) + 1
        if self._users[place] == 1:
            self._held += size
            self.peak = max(self.peak, self._held)
        return _Held(tensor, lambda: self._release(place, size))

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if self._users[place] == 0:
            self._held -= size


class _Held:
    """A tensor that autograd keeps; tells when it lets go."""

    def __init__(self, tensor: Tensor, released: Callable[[], None]) -> None:
        self.tensor = tensor
        self._released = released

    def __del__(self) -> None:
        self._released()
