"""Environment variables of ``accelerate launch`` and ``torchrun``."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Number of processes that ``accelerate launch`` or ``torchrun`` started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Whether ``accelerate launch`` or ``torchrun`` started this process, and not as the first, which alone prints."""
    return int(os.environ.get("RANK", "0")) > 0
