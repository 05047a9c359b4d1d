"""What accelerate's own FSDP2 code makes of our entry to a model; on a CPU it is reached by calling it directly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from tiny import make_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from llara_cli.model.loading import load_causal_lm
from llara_cli.model.source import ModelSource
from llara_cli.training.engine import Entry


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As much of an accelerator as the function looks at: one process that shards with RAM-efficient loading."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True
    )
    yield SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=True,
        device=torch.device("cpu"),
        torch_device_mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("dp",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp",)),
    )
    dist.destroy_process_group()


def test_sharded_weights_that_were_tied_stay_so(sharding: Any, tmp_path: Path) -> None:
    """They train as the whole ones do: the gradient of both uses arrives at the one weight."""
    folder = make_model(tmp_path / "qwen", "qwen")
    whole = load_causal_lm(ModelSource("qwen", str(folder)), torch.float32)
    entry: Any = fsdp2_prepare_model(sharding, Entry(copy.deepcopy(whole)))
    sharded = entry.model
    assert sharded.lm_head.weight is sharded.model.embed_tokens.weight
    assert isinstance(sharded.lm_head.weight, DTensor)
    ids = torch.arange(12).view(2, 6)
    whole(input_ids=ids).logits.square().mean().backward()
    entry(lambda: sharded(input_ids=ids).logits.square().mean()).backward()
    gradients = {name: weight.grad.full_tensor() for name, weight in sharded.named_parameters()}
    torch.testing.assert_close(gradients, {name: weight.grad for name, weight in whole.named_parameters()})
