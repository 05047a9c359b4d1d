"""What the host would wait for if the meta device were a GPU: it has shapes, and nothing to compute or to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llara_cli.model.decoder import Decoder

META, CPU = torch.device("meta"), torch.device("cpu")
READ, COPY = torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default


class _Calls(TorchFunctionMode):
    """Notes tensors that are made from lists on the device: dispatch does not see them."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            from_list = torch.device(kwargs.get("device") or CPU) == META
        else:
            from_list = func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list)
        if from_list:
            self.waits.append("made from a list")
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Notes values that are read, and copies that are not told to go on meanwhile."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # it leaves whole what consists of others
            with self:
                if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return made
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.is_meta for tensor in tensors)
        on_host = any(not tensor.is_meta and tensor.dim() > 0 for tensor in tensors)
        if func is READ and on_device:
            self.waits.append("read")
            return torch.ones((), dtype=args[0].dtype).item()
        if func is COPY and on_device and kwargs.get("device") == CPU:
            self.waits.append("fetched")
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        sent = func is COPY and not on_device and kwargs.get("device") == META
        if (sent and not kwargs.get("non_blocking")) or (on_device and on_host):
            self.waits.append(f"sent by {func}")
        return func(*args, **kwargs)


@contextmanager
def noted_waits(decoder: Decoder) -> Iterator[list[str]]:
    """Within: what waits for the device, outside the body of the model, which transformers answers for."""
    waits: list[str] = []
    before: list[int] = []
    entered = decoder.body.register_forward_pre_hook(lambda *_: before.append(len(waits)))
    left = decoder.body.register_forward_hook(lambda *_: waits.__delitem__(slice(before.pop(), None)))
    try:
        with (
            _Calls(waits),
            _Operations(waits),
            patch.object(torch, "is_autocast_enabled", lambda *_: False),  # the meta device has none
            patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        ):
            yield waits
    finally:
        entered.remove()
        left.remove()


def to_meta(decoder: Decoder) -> Decoder:
    """The decoder with nothing but the shapes of its weights; what was found out about its logits stays."""
    _ = decoder.logits
    decoder.model.to(META)
    return decoder
