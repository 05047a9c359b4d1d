"""What accelerate's own FSDP2 code makes of our models, in one process on a CPU."""

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
from accelerate.state import AcceleratorState
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from program import Llara
from safetensors.torch import load_file
from sharded import FSDP, sharding_init
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


@pytest.fixture
def fsdp2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As ``accelerate launch`` would start this process alone, to shard weights."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (FSDP | launched).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(AcceleratorState, "__init__", sharding_init)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("backend", ["lora", "qlora"])
def test_sharded_adapters_are_merged_into_one_plain_checkpoint(
    llara: Llara, corpus: Path, tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "qlora":
        pytest.importorskip("bitsandbytes")
    model = make_model(tmp_path / "qwen", "qwen")
    flags = ("--backend", backend, "--lora-dropout", 0, "--recipe", "released", "--learning-rate", 1e-3)
    command = ("pretrain", corpus, "--model", model, "--max-length", 110, "--max-steps", 3, "--name", "m", *flags)
    folders = [tmp_path / run / "models/m" for run in ("plain", "sharded")]
    assert llara(*command, workspace=tmp_path / "plain").code == 0
    request.getfixturevalue("fsdp2")
    done = llara(*command, workspace=tmp_path / "sharded")
    assert done.code == 0, done.err
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        plain, sharded = (load_file(folder / file) for folder in folders)
        torch.testing.assert_close(sharded, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fsdp2")
def test_fsdp1_is_refused_before_any_work(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what accelerate takes where no version is set."""
    monkeypatch.delenv("FSDP_VERSION")
    done = llara("pretrain", corpus, "--model", tiny_model)
    assert (done.code, done.out) == (2, "")
    assert "fsdp_version: 2" in done.error
    assert "FSDP_VERSION=2" in done.error
    assert not (tmp_path / "ws/models").exists()


@pytest.mark.usefixtures("fsdp2")
def test_scores_while_weights_are_sharded_are_refused(llara: Llara, train: Path, beir: Path, tiny_model: Path) -> None:
    done = llara("finetune", train, "--model", tiny_model, "--backend", "full", "--dev", beir)
    assert done.code == 2
    assert "--dev needs the whole weights in every process" in done.error
