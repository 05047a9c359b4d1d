"""Checkpoints of a run in progress: trainable weights, optimizer state and step, as safetensors, written atomically."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llara_cli.core.artifacts import finish_swap, swap, sync, write_atomically
from llara_cli.core.errors import LlaraError
from llara_cli.cpu import gradient_dtype

FOLDER, BEST = "checkpoint", "best"
_STATE, _STEP = "state.safetensors", "step.json"
SHARED = 256
"""Size of the table of code values that bitsandbytes shares among all weights; safetensors refuses shared memory."""
SAVE_SECONDS = 600
"""Seconds between checkpoints unless ``save_every`` is set."""


class SaveTimes:
    """When a run saves a checkpoint: every ``every`` steps; None: every ten minutes.

    ``agreed``: makes a decision true in every process if it is true in any, as their clocks differ.
    """

    def __init__(self, every: int | None, agreed: Callable[[bool], bool]) -> None:
        self._every, self._agreed = every, agreed
        self._last = time.monotonic()

    def is_due(self, step: int, *, ending: bool) -> bool:
        """Whether to save after ``step``; ``ending``: the run is over, and its model will be saved next."""
        if self._every is not None:
            return step % self._every == 0
        return self._agreed(time.monotonic() - self._last > (SAVE_SECONDS / 10 if ending else SAVE_SECONDS))

    def saved(self) -> None:
        """Record that a checkpoint has just been saved."""
        self._last = time.monotonic()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable weights by name; tied weights once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    *,
    writes: bool = True,
    scores: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Replace the run's checkpoint by the state after ``step`` steps, atomically.

    Sharded weights are gathered: every process calls it, and the one that ``writes`` does. ``scores``: rows of the
    dev set so far, None if there is no dev set. Raises ``LlaraError`` if the files cannot be written; the
    earlier checkpoint stays.
    """
    tensors = {}
    for name, tensor in _state(model, optimizer):
        whole = _whole(tensor)  # every process takes part
        if writes:
            tensors[name] = whole
    if not writes:
        return
    note = {"step": step} | ({} if scores is None else {"dev": list(scores)})
    try:
        _write(folder, FOLDER, tensors, note)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder / f".{FOLDER}.part", ignore_errors=True)
        raise _unwritable(folder / FOLDER, folder, error) from error


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint; returns the number of steps done, 0 if there is none.

    Raises ``LlaraError`` if a file of it is damaged or belongs to another model.
    """
    step = steps_done(folder)
    if step is None:
        return 0
    file = folder / FOLDER / _STATE
    saved = _load(file, folder)
    _create_state(model, optimizer, set(saved))
    state = dict(_state(model, optimizer))
    _refuse_misfit(file, folder, saved, state)
    for name, tensor in state.items():
        _fill(tensor, saved[name])
    for name, weight in trainable(model).items():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, int):  # bitsandbytes keeps its step count as a plain number
                optimizer.state[weight][key] = int(saved[f"{key}/{name}"])
    return step


def steps_done(folder: Path) -> int | None:
    """Steps done at the run's checkpoint; None if there is none. Raises ``LlaraError`` if it is damaged."""
    if not (folder / FOLDER).exists():
        return None
    step = _note(folder).get("step")
    if type(step) is not int or step < 0:
        raise damaged(folder / FOLDER / _STEP, folder, "it must hold the number of steps done")
    return step


def scores(folder: Path) -> list[dict[str, Any]]:
    """Dev set scores up to the run's checkpoint. Raises ``LlaraError`` if the checkpoint does not hold them."""
    if not (folder / FOLDER).exists():
        return []
    rows = _note(folder).get("dev")
    if not isinstance(rows, list):
        raise damaged(folder / FOLDER / _STEP, folder, "it must hold the scores on the dev set")
    return rows


def what_is_kept(folder: Path) -> str:
    """Which checkpoint is kept after an error, for the error's message."""
    done = steps_done(folder)
    return f"a checkpoint of step {done} is kept" if done is not None else "there is no checkpoint yet"


def damaged(file: Path, folder: Path, why: str) -> LlaraError:
    """The error for a damaged file of the run in ``folder``, with what the user can do."""
    what = f"is damaged: {why}" if file.exists() else "is missing"
    # of a restart, the folder would only be resumed
    restart = "" if folder.name.startswith(".") else ", or use `restart=True`"
    return LlaraError(
        f"{file} {what}; delete the folder {folder / FOLDER} to train from the beginning with the same command{restart}"
    )


def keep_best(folder: Path, model: nn.Module, step: int, *, writes: bool = True) -> None:
    """Save the trainable weights of ``step``. Raises ``LlaraError`` if they cannot be written."""
    tensors = {name: _whole(weight) for name, weight in trainable(model).items()}
    if not writes:
        return
    file = best_file(folder, step)
    aside = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(exist_ok=True)
        save_file(tensors, aside)
        sync(aside)
        aside.replace(file)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise _unwritable(file, folder, error) from error


def best_file(folder: Path, step: int) -> Path:
    """The file of the best weights, saved at ``step``."""
    return folder / BEST / f"{step}.safetensors"


def check_best(folder: Path, step: int) -> None:
    """Raise ``LlaraError`` unless all weights saved at ``step`` are there."""
    file = best_file(folder, step)
    with _readable(file, folder), safe_open(file, "pt"):
        pass


def drop_best(folder: Path, kept: Collection[int]) -> None:
    """Remove the saved weights of all steps except ``kept``."""
    keep = [best_file(folder, step) for step in kept]
    for file in (folder / BEST).glob("*"):
        if file not in keep:
            file.unlink()


def take_best(folder: Path, model: nn.Module, step: int) -> None:
    """Load the weights that were saved at ``step`` into the model.

    Raises ``LlaraError`` if they are missing, damaged or another model's.
    """
    file = best_file(folder, step)
    saved = _load(file, folder)
    weights = trainable(model)
    _refuse_misfit(file, folder, saved, weights)
    for name, weight in weights.items():
        _fill(weight, saved[name])


def _note(folder: Path) -> dict[str, Any]:
    """The JSON note beside the run's checkpoint."""
    file = folder / FOLDER / _STEP
    with _readable(file, folder):
        note = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(note, dict):
        raise damaged(file, folder, "it must hold a JSON object")
    return note


@contextmanager
def _readable(file: Path, folder: Path) -> Iterator[None]:
    """Turn errors of reading a file of the run in ``folder`` into a ``LlaraError``."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(file, folder, f"it cannot be read ({error})") from error


def _load(file: Path, folder: Path) -> dict[str, Tensor]:
    with _readable(file, folder):
        tensors: dict[str, Tensor] = load_file(file)
    return tensors


def _refuse_misfit(file: Path, folder: Path, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ``LlaraError`` unless ``saved`` has exactly the ``expected`` names, shapes and dtypes."""
    if missing := expected.keys() - saved.keys():
        raise damaged(file, folder, f"{min(missing)} is not in it")
    if unknown := saved.keys() - expected.keys():
        raise damaged(file, folder, f"{min(unknown)} is in it, but not in this model")
    for name, tensor in expected.items():
        loaded = saved[name]
        if (loaded.shape, loaded.dtype) != (tensor.shape, tensor.dtype):
            raise damaged(file, folder, f"{name} is {_form(loaded)} in it, but {_form(tensor)} in this model")


def _form(tensor: Tensor) -> str:
    """Shape and dtype, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _unwritable(file: Path, folder: Path, error: Exception) -> LlaraError:
    """The error for a file that could not be saved, usually because the disk is full."""
    kept = what_is_kept(folder)
    return LlaraError(f"{file}: cannot be saved ({error}); {kept}; free disk space and run the same command again")


def _write(folder: Path, name: str, tensors: dict[str, Tensor], note: Mapping[str, Any]) -> None:
    aside = folder / f".{name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(tensors, aside / _STATE)
    sync(aside / _STATE)  # before the old checkpoint goes
    write_atomically(aside / _STEP, json.dumps(note))
    sync(aside)
    swap(aside, folder / name)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a resumed run needs, by name."""
    for name, weight in trainable(model).items():
        yield f"weight/{name}", weight
        state: Mapping[str, Any] = optimizer.state.get(weight, {})
        for key, value in state.items():
            tensor = torch.tensor(value) if isinstance(value, int) else value
            if isinstance(tensor, Tensor):
                yield from _parts(f"{key}/{name}", tensor)


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that make up a tensor: codes and scales of a quantized one."""
    if type(tensor) in (Tensor, nn.Parameter, DTensor):
        yield name, tensor
        return
    quantized: Any = tensor
    names, _ = quantized.__tensor_flatten__()
    for part in names:
        yield f"{name}.{part}", getattr(quantized, part)


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


def _create_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: set[str]) -> None:
    """Make the optimizer allocate its state, by a step with learning rate 0."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    _set_rates(optimizer, [0.0] * len(rates))
    for name, weight in trainable(model).items():
        if f"step/{name}" in saved:  # a weight that never had a gradient has no state
            weight.grad = torch.zeros_like(weight, dtype=gradient_dtype(weight))
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _set_rates(optimizer, rates)


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def mend(folder: Path) -> None:
    """Finish a save that was interrupted; call it in one process, before any other reads."""
    finish_swap(folder / FOLDER)


def discard(folder: Path) -> None:
    """Remove the files that only an unfinished run needs."""
    for name in (FOLDER, BEST):
        for place in (name, f".{name}.part", f".{name}.old"):
            shutil.rmtree(folder / place, ignore_errors=True)
