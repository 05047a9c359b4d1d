"""Kernels for CPUs behind one door: matrix products, attention, gradients, the memory allocator.

Other rooms import from here, never from the modules inside. Each kernel that uses a private operation of PyTorch is
compared with plain PyTorch before its first use (``kernel.py``); where it differs, plain PyTorch computes, and the user
is warned once.
"""

from llara_cli.cpu.allocator import give_back_memory, keep_freed_memory, resident_memory
from llara_cli.cpu.matmul import (
    CpuKernels,
    add_matmul_transposed,
    gradient_dtype,
    lean_training,
    linear,
    wide,
    zeros_for_sum,
)

__all__ = [
    "CpuKernels",
    "add_matmul_transposed",
    "give_back_memory",
    "gradient_dtype",
    "keep_freed_memory",
    "lean_training",
    "linear",
    "resident_memory",
    "wide",
    "zeros_for_sum",
]
