"""Environment variables of ``accelerate launch`` and ``torchrun``."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """How many processes ``accelerate launch`` or ``torchrun`` started; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Whether ``accelerate launch`` or ``torchrun`` started this process beside a first one, which does the talking."""
    return int(os.environ.get("RANK", "0")) > 0
