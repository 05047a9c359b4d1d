"""Checkpoints of a run in progress: trainable weights, optimiser state and step, as safetensors, written atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llara_cli.artifacts import finish_swap, swap, write_atomically

FOLDER = "checkpoint"
_STATE, _STEP = "state.safetensors", "step.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that train, by name; a tied weight once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Replace the run's checkpoint by the state after ``step`` steps; a reader never sees half of one."""
    aside = folder / f".{FOLDER}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_tensors(model, optimiser), aside / _STATE)
    write_atomically(aside / _STEP, json.dumps({"step": step}))
    swap(aside, folder / FOLDER)


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, weight in trainable(model).items():
        found[f"weight/{name}"] = weight.detach().cpu().contiguous()
        state: Mapping[str, Tensor] = optimiser.state.get(weight, {})
        found |= {f"{key}/{name}": state[key].detach().cpu().contiguous() for key in _MOMENTS if key in state}
    return found


def restore(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Take up the newest checkpoint; the number of steps it has done, 0 where there is none."""
    place = folder / FOLDER
    finish_swap(place)
    if not (place / _STEP).is_file():
        return 0
    tensors = load_file(place / _STATE)
    for name, weight in trainable(model).items():
        with torch.no_grad():
            weight.copy_(tensors[f"weight/{name}"])
        moments = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
        if moments:
            optimiser.state[weight] = {
                key: value if key == "step" else value.to(weight.device) for key, value in moments.items()
            }
    step: int = json.loads((place / _STEP).read_text())["step"]
    return step


def discard(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for name in (FOLDER, f".{FOLDER}.part", f".{FOLDER}.old"):
        shutil.rmtree(folder / name, ignore_errors=True)
