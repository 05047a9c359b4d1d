"""Adapters: what is saved is what was trained, merged or not, on a plain base and on a four-bit one."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CAUSAL, make
from program import Llara, write_jsonl
from tiny import TEXTS, make_model, make_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MambaConfig

from llara_backends import adapters
from llara_cli.core import registry
from llara_cli.core.config import LoraConfig
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.model.backends import TrainingSetup
from llara_cli.model.loading import load_causal_lm, quiet_transformers
from llara_cli.model.recipe import RELEASED
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer

BACKENDS = ["lora", "qlora"]
WITHOUT_SOME_ADAPTERS = {"falcon_h1", "falcon_mamba", "llama4", "mamba", "mamba2", "nemotron_h", "phimoe"}
"""Peft refuses some of their layers, or a layer routes experts."""


class Trained:
    """A backend with its model after some steps of next-token prediction."""

    def __init__(self, name: str, folder: Path, *, merge: bool, steps: int = 30) -> None:
        torch.manual_seed(0)
        self.source = ModelSource("tiny", str(folder))
        self.backend = registry.load("training", name)()
        self.tokenizer = TextTokenizer.load(self.source)
        adapter = LoraConfig(rank=8, alpha=16, dropout=0.0, merge=merge)
        setup = TrainingSetup(torch.float32, RELEASED.new_tokens, seed=3, adapter=adapter)
        self.model = self.backend.load(self.source, self.tokenizer, setup)
        slots = self.tokenizer.hf.convert_tokens_to_ids(list(RELEASED.new_tokens))
        self.ids = [torch.tensor([[*ids, *slots]]) for ids in self.tokenizer.encode(TEXTS)]
        self.losses = [self._step(optimizer) for optimizer in [self._optimizer()] for _ in range(steps)]
        self.model.eval()

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([weight for weight in self.model.parameters() if weight.requires_grad], lr=2e-2)

    def _step(self, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        losses = [cross_entropy(self.model(ids).logits[0, :-1], ids[0, 1:]) for ids in self.ids]
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """Of the first text."""
        logits: torch.Tensor = model(self.ids[0]).logits
        return logits

    def save(self, folder: Path) -> ModelSource:
        """As a training run does."""
        with quiet_transformers():
            self.backend.save(self.model, folder, torch.float32)
        self.tokenizer.save(folder)
        return ModelSource("saved", str(folder))


@pytest.fixture(scope="module", params=["llama", "qwen"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; Qwen's has tied embeddings."""
    return make_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter only"])
@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_saved_is_what_was_trained(name: str, folder: Path, tmp_path: Path, merge: bool) -> None:
    trained = Trained(name, folder, merge=merge)
    assert trained.losses[-1] < 0.97 * trained.losses[0]
    wanted = trained.logits(trained.model)
    saved = trained.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists() == merge
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    again = load_causal_lm(saved, torch.float32).eval()
    torch.testing.assert_close(trained.logits(again), wanted, atol=2e-5, rtol=1e-4)


def test_merging_into_the_base_that_was_not_quantised_would_show(folder: Path, tmp_path: Path) -> None:
    """The check above has teeth: the adapter belongs on the four-bit base it was trained on."""
    trained = Trained("qlora", folder, merge=False)
    wanted = trained.logits(trained.model)
    saved = trained.save(tmp_path)
    base = tmp_path / "base.json"
    base.write_text(json.dumps(json.loads(base.read_text()) | {"quantization": None}))
    wrong = trained.logits(load_causal_lm(saved, torch.float32).eval())
    assert (wrong - wanted).norm() / wanted.norm() > 0.02


def test_the_base_really_takes_four_bits(folder: Path) -> None:
    import bitsandbytes

    trained = Trained("qlora", folder, merge=True, steps=1)
    layers = [layer for layer in trained.model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert layers
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.nested
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features


@pytest.mark.parametrize("name", BACKENDS)
def test_a_base_that_is_gone_or_another_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "base"
    shutil.copytree(folder, moved)
    saved = Trained(name, moved, merge=False, steps=1).save(tmp_path / "saved")
    before = saved.fingerprint()
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="base model has changed"):
        load_causal_lm(saved, torch.float32)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="base model is gone"):
        load_causal_lm(saved, torch.float32)
    weights = tmp_path / "saved/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert saved.fingerprint() != before


@pytest.mark.parametrize("name", BACKENDS)
def test_a_tokenizer_that_knows_more_than_its_model(name: str, tmp_path: Path) -> None:
    """As a GGUF's with its ``<unk>``: the row between is made again at each load, and must be the same row."""
    tokenizer = TextTokenizer.load(ModelSource("tiny", str(make_model(tmp_path / "base"))))
    tokenizer.add_tokens(["<unk>"])
    tokenizer.save(tmp_path / "base")
    trained = Trained(name, tmp_path / "base", merge=False, steps=1)
    wanted = trained.logits(trained.model)
    again = load_causal_lm(trained.save(tmp_path / "saved"), torch.float32).eval()
    torch.testing.assert_close(trained.logits(again), wanted, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def unmerged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model saved as an adapter only, on a four-bit base."""
    place = tmp_path_factory.mktemp("unmerged")
    Trained("qlora", make_model(place / "elsewhere/base"), merge=False, steps=1).save(place / "saved")
    return place / "saved"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _tell(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("adapter/adapter_model.safetensors", _cut, "adapter: cannot load the adapter"),
        ("adapter/adapter_model.safetensors", Path.unlink, "adapter: no adapter_model.safetensors"),
        ("adapter/adapter_config.json", Path.unlink, "adapter: cannot load the adapter"),
        ("adapter/adapter_config.json", lambda path: _tell(path, r=3), "adapter: cannot load the adapter"),
        ("base.json", lambda path: path.write_text("{}"), r"base\.json: this version cannot read"),
        ("base.json", lambda path: path.write_text("[]"), r"base\.json: damaged: not a JSON object"),
        ("base.json", lambda path: _tell(path, quantization="int3"), r"base\.json: this version cannot read"),
        ("base.json", lambda path: _tell(path, location="some/hub-model"), "no model 'some/hub-model'.*on the hub"),
    ],
)
def test_damage_is_named(unmerged: Path, tmp_path: Path, file: str, damage: Any, message: str) -> None:
    shutil.copytree(unmerged, tmp_path / "saved")
    damage(tmp_path / "saved" / file)
    with pytest.raises(LlaraError, match=message):
        load_causal_lm(ModelSource("saved", str(tmp_path / "saved")), torch.float32)


@pytest.mark.parametrize(("first", "second"), [("qlora", "qlora"), ("lora", "qlora"), ("qlora", "lora")])
def test_an_adapter_on_an_adapter(folder: Path, tmp_path: Path, first: str, second: str) -> None:
    Trained(first, folder, merge=False, steps=3).save(tmp_path / "first")
    trained = Trained(second, tmp_path / "first", merge=False, steps=3)
    wanted = trained.logits(trained.model)
    again = load_causal_lm(trained.save(tmp_path / "second"), torch.float32).eval()
    torch.testing.assert_close(trained.logits(again), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_adapter_encodes_like_the_model_merged_from_it(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    documents = write_jsonl(tmp_path / "documents.jsonl", [{"_id": str(i), "text": t} for i, t in enumerate(TEXTS)])
    flags = ("--model", tiny_model, "--backend", name, "--max-length", 110, "--max-steps", 4, "--recipe", "released")
    for merge in ("--merge", "--no-merge"):
        trained = llara("pretrain", corpus, *flags, merge, "--name", merge[2:])
        assert trained.code == 0, trained.err
        encoded = llara("encode", documents, "--model", merge[2:], "--name", merge[2:])
        assert encoded.code == 0, encoded.err
    merged, alone = (np.load(tmp_path / f"ws/embeddings/{name}/vectors-00000.npy") for name in ("merge", "no-merge"))
    np.testing.assert_allclose(alone, merged, atol=2e-6)
    assert not (tmp_path / "ws/models/no-merge/model.safetensors").exists()


def test_a_workspace_may_move_and_an_adapter_may_leave_it(folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(folder, models / "base")
    trained = Trained("lora", models / "base", merge=False, steps=1)
    wanted = trained.logits(trained.model)
    trained.save(models / "mine")
    shutil.copytree(models / "mine", tmp_path / "left/mine")
    shutil.copytree(models, tmp_path / "moved")
    for place, gone in ((tmp_path / "left/mine", None), (tmp_path / "moved/mine", models)):
        if gone is not None:
            shutil.rmtree(gone)
        again = load_causal_lm(ModelSource("mine", str(place)), torch.float32).eval()
        torch.testing.assert_close(trained.logits(again), wanted, atol=2e-5, rtol=1e-4)


def save_mamba(folder: Path) -> Path:
    """A tiny random Mamba, on whose ``out_proj`` peft refuses to put an adapter."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=400, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=2)
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_layers_that_peft_refuses_are_left_out_and_told(llara: Llara, tmp_path: Path, corpus: Path) -> None:
    flags = ("--model", save_mamba(tmp_path / "mamba"), "--backend", "lora", "--max-steps", 1, "--batch-size", 2)
    trained = llara("pretrain", corpus, *flags, "--name", "m")
    assert trained.code == 0, trained.err
    assert trained.err.count("out_proj left without adapters: peft cannot adapt these layers (mamba)") == 1
    saved = json.loads((tmp_path / "ws/models/m/adapter/adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in saved["target_modules"]} == {"in_proj", "x_proj", "dt_proj"}


def test_targets_may_be_chosen(llara: Llara, tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    flags = ("--model", tiny_model, "--backend", "lora", "--max-steps", 1, "--batch-size", 2, "--name", "m")
    chosen = llara("pretrain", corpus, *flags, "--lora-targets", "q_proj, v_proj")
    assert chosen.code == 0, chosen.err
    saved = json.loads((tmp_path / "ws/models/m/adapter/adapter_config.json").read_text())
    assert saved["target_modules"] == ["q_proj", "v_proj"]
    unknown = llara("pretrain", corpus, *flags, "--lora-targets", "query", "--restart")
    assert unknown.code == 2
    assert "--lora-targets query: " in unknown.error
    assert "linear layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in unknown.error
    assert llara("pretrain", corpus, *flags, "--lora-targets", "q_proj,,v_proj", "--restart").code == 2
    assert "adapter.targets was ['q_proj', 'v_proj'], now None" in llara("pretrain", corpus, *flags).error


# peft's words about its own settings for fused experts, and about GPT-2's layers
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
# transformers' code of GPT-BigCode, when it is imported
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_every_architecture_can_have_adapters(name: str) -> None:
    """What it computes changes with them, and goes on being computed."""
    model, notes = deepcopy(make(name)), list[str]()  # which is shared among tests
    setup = TrainingSetup(torch.float32, adapter=LoraConfig(rank=2, dropout=0.0), note=notes.append)
    adapted = adapters.adapt(model, [], setup)
    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        before = adapted.get_base_model()(input_ids=ids, use_cache=False).logits
        for weight in (weight for name, weight in adapted.named_parameters() if "lora_B" in name):
            weight.normal_(std=0.2)
        after = adapted.get_base_model()(input_ids=ids, use_cache=False).logits
    assert (after - before).abs().max() > 1e-4
    assert len(notes) == (name in WITHOUT_SOME_ADAPTERS), notes
