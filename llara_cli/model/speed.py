"""Expected computing time from the number of operations."""

from __future__ import annotations

import time

import torch

EFFICIENCY = 0.5
"""Share of the device's matrix multiplication rate that a model is assumed to reach."""


def rough_seconds(flops: float, device: torch.device, dtype: torch.dtype) -> float:
    """Expected time in seconds, at ``EFFICIENCY`` of the device's matrix multiplication rate."""
    return flops / (EFFICIENCY * matmul_rate(device, dtype))


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a square matrix product, by a short measurement."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        product = left @ left
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    del product
    return best
