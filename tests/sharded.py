"""``llara`` with weights sharded on a CPU, where accelerate does not shard by itself.

As a program it is a run that is interrupted in the middle of its fourth step, and then goes on. Its processes would not
wait for the first one's saving if they waited as long as PyTorch does by default.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch.distributed import distributed_c10d

from llara_cli import app
from llara_cli.training.history import History
from llara_cli.training.trainable_model import TrainableModel

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What ``accelerate launch`` sets for FSDP2."""
_init, _add, _save = AcceleratorState.__init__, History.add, TrainableModel.save


def sharding_init(state: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    """In place of ``AcceleratorState.__init__``: it shards on CPUs too."""
    _init(state, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = fsdp_plugin


def interrupted_add(history: History, row: dict[str, Any]) -> str:
    """In place of ``History.add``."""
    if row["step"] == 4:
        raise KeyboardInterrupt
    return _add(history, row)


def slow_save(prepared: TrainableModel, folder: Path, dtype: torch.dtype) -> None:
    """In place of ``TrainableModel.save``, for which the other processes wait."""
    time.sleep(2)
    _save(prepared, folder, dtype)


def main(arguments: list[str]) -> int:
    """Run ``llara`` on ``arguments`` twice; the second exit code."""
    AcceleratorState.__init__ = sharding_init
    TrainableModel.save = slow_save
    distributed_c10d.default_pg_timeout = timedelta(seconds=1)
    History.add = interrupted_add
    assert app.run(arguments) == 130
    History.add = _add
    return app.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
