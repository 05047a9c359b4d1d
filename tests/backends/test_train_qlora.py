"""The backend ``qlora`` alone: what is kept in four bits, in which dtype the rest is, where it runs, what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model
from torch import nn
from transformers import PreTrainedModel

from llara_cli.core import registry
from llara_cli.core.config import LoraConfig
from llara_cli.core.errors import UserError
from llara_cli.model.adapter_checkpoint import quantize
from llara_cli.model.backends import TrainingBackend, TrainingSetup
from llara_cli.model.loading import load_causal_lm, quiet_transformers
from llara_cli.model.recipe import RELEASED
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer

bitsandbytes = pytest.importorskip("bitsandbytes")

IDS = torch.tensor([[1, 40, 77, 102, 300, 405, 2]])


@pytest.fixture(scope="module", params=["llama", "qwen", "neox"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A tiny model of each architecture; Qwen's has tied embeddings, NeoX' biases."""
    return ModelSource("tiny", str(make_model(tmp_path_factory.mktemp(request.param) / "model", request.param)))


def loaded(source: ModelSource, dtype: torch.dtype, *, merge: bool = True) -> tuple[TrainingBackend, PreTrainedModel]:
    """A backend and its model, whose adapters do something already."""
    torch.manual_seed(0)
    backend: TrainingBackend = registry.load("training", "qlora")()
    setup = TrainingSetup(dtype, RELEASED.new_tokens, seed=3, adapter=LoraConfig(rank=8, dropout=0.0, merge=merge))
    model = backend.load(source, TextTokenizer.load(source), setup)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape) * 0.05
    return backend, model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """On the CPU, in fp32."""
    found: torch.Tensor = model(IDS.to(model.device)).logits
    return found.float().cpu()


def test_what_is_loaded_runs_before_it_is_moved_and_after(source: ModelSource) -> None:
    _, model = loaded(source, torch.float32)
    before = logits(model)
    torch.testing.assert_close(logits(model.to("cpu")), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_but_the_linear_layers_keeps_its_dtype_and_what_trains_is_fp32(
    source: ModelSource, dtype: torch.dtype
) -> None:
    _, model = loaded(source, dtype)
    four_bit = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert {(layer.weight.dtype, layer.compute_dtype) for layer in four_bit} == {(torch.uint8, dtype)}
    assert {layer.weight.quant_state.quant_type for layer in four_bit} == {"nf4"}
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    assert not set(head.modules()) & set(four_bit)
    quantized = {id(layer.weight) for layer in four_bit}
    rest = [weight for weight in model.parameters() if id(weight) not in quantized]
    assert {weight.dtype for weight in rest if not weight.requires_grad} == {dtype}
    assert {weight.dtype for weight in rest if weight.requires_grad} == {torch.float32}


def test_a_bf16_base_merges_into_what_its_adapter_loads_as(source: ModelSource, tmp_path: Path) -> None:
    for merge in (True, False):
        backend, model = loaded(source, torch.bfloat16, merge=merge)
        with quiet_transformers():
            backend.save(model, tmp_path / str(merge), torch.float32)
    TextTokenizer.load(source).save(tmp_path / "False")
    merged, alone = (
        load_causal_lm(ModelSource("saved", str(tmp_path / str(merge))), torch.float32).state_dict()
        for merge in (True, False)
    )
    for name, weight in merged.items():  # the rows of new tokens lie in a table of bf16 while they train
        bound = {"atol": 1e-6, "rtol": 0.0} if "layers" in name else {"atol": 1e-6, "rtol": 2**-8}
        torch.testing.assert_close(weight, alone[name], **bound)


def test_the_merged_checkpoint_has_the_dtype_asked_for(source: ModelSource, tmp_path: Path) -> None:
    backend, model = loaded(source, torch.float32)
    with quiet_transformers():
        backend.save(model, tmp_path, torch.bfloat16)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_a_missing_bitsandbytes_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = load_causal_lm(ModelSource("tiny", str(make_model(tmp_path / "model"))), torch.float32)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "llara_backends.train_qlora", raising=False)
    with pytest.raises(UserError, match=r"'qlora' is not installed: pip install 'llara\[qlora\]'"):
        registry.load("training", "qlora")
    with pytest.raises(UserError, match=r"four-bit .*: pip install 'llara\[qlora\]'"):
        quantize(model, torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter only"])
def test_what_a_gpu_trained_is_what_is_saved(source: ModelSource, tmp_path: Path, merge: bool) -> None:
    backend, model = loaded(source, torch.float32, merge=merge)
    wanted = logits(model.to("cuda"))
    with quiet_transformers():
        backend.save(model, tmp_path, torch.float32)
    TextTokenizer.load(source).save(tmp_path)
    again = load_causal_lm(ModelSource("saved", str(tmp_path)), torch.float32).eval()
    torch.testing.assert_close(logits(again), wanted, atol=1e-4, rtol=1e-3)
