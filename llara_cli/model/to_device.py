"""Copies arrays of the host to the model's device without waiting."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """The values on ``device``, without waiting for work queued on a GPU.

    On the CPU an array shares its memory with the tensor.
    """
    tensor = torch.as_tensor(values)
    if device.type == "cuda":  # a copy from pageable memory would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
