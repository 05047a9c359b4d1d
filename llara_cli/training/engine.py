"""Runs forwards and backwards: in one process, or in several that split a batch (accelerate: DDP, FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llara_cli.core.distributed import PATIENCE
from llara_cli.core.errors import UserError
from llara_cli.cpu import gradient_dtype
from llara_cli.training.optimizers import uncompiled_on_cpu

P = ParamSpec("P")
T = TypeVar("T")


class Engine:
    """One process, nothing wrapped."""

    processes = 1
    rank = 0

    @property
    def scale(self) -> float:
        """Factor of a loss before ``backward``."""
        return 1.0

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function; ``backward`` may be called on its result."""
        return function(*args, **kwargs)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Context of a forward and its backward; ``last``: this process' last one in the optimizer batch."""
        yield

    def total(self, values: Tensor) -> Tensor:
        """Element-wise sums over all processes."""
        return values

    def agreed(self, here: bool) -> bool:
        """True in every process if it is true in any."""
        return here


def local(weight: Tensor) -> Tensor:
    """This process' shard of a weight; the whole weight if it is not sharded."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Entry(nn.Module):
    """Calls functions of ``model`` inside its own ``forward``, so that DDP and FSDP see them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # the layers that FSDP shards one by one

    def forward(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    def tie_weights(self) -> None:
        """Tie embeddings and LM head again if they were tied: accelerate unties them when it shards."""
        tie = getattr(self.model, "tie_weights", None)  # a model of transformers has it
        if callable(tie):
            tie()


class AcceleratedEngine(Engine):
    """A model and its optimizer as accelerate prepares them for the processes that were launched."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, fp16: bool
    ) -> None:
        self.accelerator = accelerator
        self.processes, self.rank = accelerator.num_processes, accelerator.process_index
        if accelerator.distributed_type == DistributedType.FSDP and type(optimizer) is not torch.optim.AdamW:
            raise UserError("sharded weights (FSDP) train with `optimizer.name='adamw'` only")
        self.entry: nn.Module = Entry(model)
        alone = accelerator.distributed_type == DistributedType.NO
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        self._averages = not alone and any(gradient_dtype(weight) != weight.dtype for weight in trained)
        if self._averages:  # DDP takes no gradients of another dtype than their weights'
            prepared = accelerator.prepare(optimizer)
        else:
            self.entry, prepared = accelerator.prepare(self.entry, optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=fp16)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self.entry(function, *args, **kwargs)
        return result

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        # FSDP reduces after every backward: waiting for the last would keep whole gradients in every process
        waits = not last and self.accelerator.distributed_type != DistributedType.FSDP and self.processes > 1
        with self.accelerator.no_sync(self.entry) if waits else nullcontext():
            yield
        if self._averages and last:
            self._average_gradients()

    def _average_gradients(self) -> None:
        weights = [weight for weight in self.entry.parameters() if weight.requires_grad]
        have = torch.tensor([weight.grad is not None for weight in weights], device=self.accelerator.device)
        for weight, processes in zip(weights, self.total(have.float()).tolist(), strict=True):
            if processes:  # in the others it is zero
                gradient = (
                    torch.zeros_like(weight, dtype=gradient_dtype(weight)) if weight.grad is None else weight.grad
                )
                weight.grad = self.accelerator.reduce(gradient, reduction="mean")

    @property
    def scale(self) -> float:
        """The loss scale of fp16, times the number of processes, as their gradients are averaged."""
        if not self.scaler.is_enabled():
            return float(self.processes)
        return self.processes * float(self.scaler.scale(torch.ones((), device=self.accelerator.device)))

    def total(self, values: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def agreed(self, here: bool) -> bool:
        if self.processes == 1:
            return here
        return bool(self.total(torch.tensor(float(here), device=self.accelerator.device)) > 0)

    def clip(self, max_norm: float) -> float:
        """Unscale the gradients and clip their total norm; returns the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm: Any = nn.utils.clip_grad_norm_(self.entry.parameters(), max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def gather(self, model: nn.Module) -> None:
        """Gather a sharded model on the CPU of the first process; it can no longer be trained."""
        plain: dict[nn.Parameter, nn.Parameter] = {}
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if isinstance(weight, DTensor):
                    if weight not in plain:  # tied weights stay one
                        plain[weight] = nn.Parameter(self._whole(weight), weight.requires_grad)
                    module.register_parameter(name, plain[weight])
            if isinstance(module, FSDPModule):  # sharding put that class, which moves weights, before the module's own
                _, module.__class__ = type(module).__bases__

    def _whole(self, weight: DTensor) -> Tensor:
        """The whole weight in the first process; None in the others, which must call this too."""
        whole = weight.full_tensor().detach()
        return whole.cpu() if self.rank == 0 else whole.new_empty(0)

    def update(self) -> None:
        """One optimizer step, skipped if the scaled gradients overflowed."""
        with uncompiled_on_cpu(self.accelerator.device):
            self.scaler.step(self.optimizer)
        self.scaler.update()


def open_accelerator(device: torch.device, trackers: Sequence[str], folder: Path) -> Accelerator:
    """Join the processes started by ``accelerate launch`` or ``torchrun``, if any.

    ``trackers``: names of accelerate's trackers, which write below ``folder``. Raises ``UserError`` if the library
    of one is missing: accelerate would go on without it; and for FSDP1, whose flat weights cannot be saved as they are.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise UserError(f"`track={name}` needs {name}, which is not installed: pip install {name}")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the loop chooses dtypes
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],  # while the first process hashes, merges or saves
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(
            "FSDP1, accelerate's default, is not supported, only FSDP2: set fsdp_version: 2 in "
            "accelerate's configuration file, or FSDP_VERSION=2 in the environment"
        )
    return accelerator
