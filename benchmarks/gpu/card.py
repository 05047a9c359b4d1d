"""The card, the versions, how fast it copies and multiplies."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import torch

from gpu.bench import PRODUCT, Bench, options_of

LIBRARIES = (
    "torch", "transformers", "accelerate", "peft", "sentence-transformers", "tokenizers", "triton", "numpy", "pyarrow",
    "typer", "bitsandbytes", "torchao", "liger_kernel",
)  # fmt: skip


def version(library: str) -> str:
    """The installed one's."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions(bench: Bench) -> None:
    """What is measured, and with what."""
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    installed = {library: version(library) for library in LIBRARIES}
    bench.record("versions", card=card, python=sys.version.split()[0], processors=os.cpu_count(), **installed)


def memory(bench: Bench) -> None:
    """GB of the card that are free, and all."""
    if bench.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        bench.record("memory", free_gb=free / 1e9, total_gb=total / 1e9)


def copies(bench: Bench) -> None:
    """GB/s read and written on the device, and read from the host."""
    size = 1 << (20 if bench.toy else 30)
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.record("copy on the device", gb_per_s=2 * size / bench.median(lambda: target.copy_(source)) / 1e9)
    for name, pinned in (("pageable", False), ("pinned", bench.device.type == "cuda")):
        host = torch.zeros(size // 4, dtype=torch.uint8, pin_memory=pinned)
        there = target[: len(host)]
        seconds = bench.median(lambda host=host, there=there: there.copy_(host, non_blocking=True), 4)  # type: ignore[misc]
        bench.record(f"copy from the host, {name}", gb_per_s=len(host) / seconds / 1e9)


def products(bench: Bench) -> None:
    """FLOP/s of large square products of random numbers."""
    size = 256 if bench.toy else 8192
    for name, dtype in ((PRODUCT, torch.bfloat16), ("fp32 product", torch.float32)):
        left, right = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        seconds = bench.median(lambda left=left, right=right: left @ right)  # type: ignore[misc]
        bench.record(name, tflops=2 * size**3 / seconds / 1e12, size=size)


def main() -> None:
    """Everything that the other stages are held against."""
    bench = Bench(options_of(__doc__).parse_args())
    for measure in (versions, memory, copies, products):
        bench.attempt(measure.__name__, measure, bench)


if __name__ == "__main__":
    main()
