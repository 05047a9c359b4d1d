"""Checkpoints of a run in progress: trainable weights, optimiser state and step, as safetensors, written atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llara_cli.artifacts import finish_swap, swap, sync, write_atomically

FOLDER, BEST = "checkpoint", "best"
_STATE, _STEP = "state.safetensors", "step.json"
SHARED = 256
"""Numbers in the table of code values that bitsandbytes shares among all weights; safetensors refuses shared memory."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that train, by name; a tied weight once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, *, writes: bool = True) -> None:
    """Replace the run's checkpoint by the state after ``step`` steps; a reader never sees half of one.

    Sharded weights are gathered: every process calls it, and the one that ``writes`` does.
    """
    tensors = {}
    for name, tensor in _state(model, optimiser):
        whole = _whole(tensor)  # every process takes part
        if writes:
            tensors[name] = whole
    if not writes:
        return
    _write(folder, FOLDER, tensors, step)


def restore(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Take up the newest checkpoint; the number of steps it has done, 0 where there is none."""
    place = folder / FOLDER
    step = steps_done(folder)
    if step is None:
        return 0
    tensors = load_file(place / _STATE)
    _create_state(model, optimiser, set(tensors))
    for name, tensor in _state(model, optimiser):
        _fill(tensor, tensors[name])
    for name, weight in trainable(model).items():
        for key, value in optimiser.state.get(weight, {}).items():
            if isinstance(value, int):  # bitsandbytes counts its steps in plain numbers
                optimiser.state[weight][key] = int(tensors[f"{key}/{name}"])
    return step


def steps_done(folder: Path) -> int | None:
    """The steps of the run's checkpoint; None where there is none."""
    place = folder / FOLDER
    if not (place / _STEP).is_file():
        return None
    step: int = json.loads((place / _STEP).read_text())["step"]
    return step


def keep_best(folder: Path, model: nn.Module, step: int, *, writes: bool = True) -> None:
    """Replace the run's best weights, those that train, by the model's."""
    tensors = {name: _whole(weight) for name, weight in trainable(model).items()}
    if writes:
        _write(folder, BEST, tensors, step)


def take_best(folder: Path, model: nn.Module) -> None:
    """Give the model the run's best weights."""
    finish_swap(folder / BEST)
    tensors = load_file(folder / BEST / _STATE)
    for name, weight in trainable(model).items():
        _fill(weight, tensors[name])


def _write(folder: Path, name: str, tensors: dict[str, Tensor], step: int) -> None:
    aside = folder / f".{name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(tensors, aside / _STATE)
    sync(aside / _STATE)  # before the old checkpoint goes
    write_atomically(aside / _STEP, json.dumps({"step": step}))
    sync(aside)
    swap(aside, folder / name)


def _state(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a run goes on from, by a name of its own."""
    for name, weight in trainable(model).items():
        yield f"weight/{name}", weight
        state: Mapping[str, Any] = optimiser.state.get(weight, {})
        for key, value in state.items():
            found = torch.tensor(value) if isinstance(value, int) else value
            if isinstance(found, Tensor):
                yield from _parts(f"{key}/{name}", found)


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor is made of: a quantised one has codes and scales."""
    if type(tensor) in (Tensor, nn.Parameter, DTensor):
        yield name, tensor
        return
    quantised: Any = tensor
    names, _ = quantised.__tensor_flatten__()
    for part in names:
        yield f"{name}.{part}", getattr(quantised, part)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor on the CPU, sharded or not."""
    plain = tensor.detach()
    whole = (plain.full_tensor() if isinstance(plain, DTensor) else plain).cpu().contiguous()
    return whole.clone() if whole.numel() <= SHARED else whole


@torch.no_grad()
def _fill(place: Tensor, value: Tensor) -> None:
    if isinstance(place, DTensor):
        value = distribute_tensor(value.to(place.device), place.device_mesh, place.placements)
    place.copy_(value)


def _create_state(model: nn.Module, optimiser: torch.optim.Optimizer, saved: set[str]) -> None:
    """Make the optimiser allocate the state that was saved, by a step of size nothing."""
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    _set_rates(optimiser, [0.0] * len(rates))
    for name, weight in trainable(model).items():
        if f"step/{name}" in saved:  # a weight that never had a gradient has no state
            weight.grad = torch.zeros_like(weight)
    with torch.compiler.set_stance("force_eager"):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    _set_rates(optimiser, rates)


def _set_rates(optimiser: torch.optim.Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def mend(folder: Path) -> None:
    """Finish what a kill cut short; for one process, before any other looks."""
    finish_swap(folder / FOLDER)


def discard(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for name in (FOLDER, BEST):
        for place in (name, f".{name}.part", f".{name}.old"):
            shutil.rmtree(folder / place, ignore_errors=True)
