"""What a model argument names, and which recipe comes with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model
from tiny_sentences import make_sentence_model

from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import PAPER, RELEASED, from_json, read_recipe, to_json
from llara_cli.model.source import resolve
from llara_cli.model.tokenizer import TextTokenizer


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace(tmp_path / "ws")


def released_folder(folder: Path) -> Path:
    """A checkpoint as the authors publish theirs: the 16 slot tokens in its tokenizer, no ``llara.json``."""
    make_model(folder)
    tokenizer = TextTokenizer.load(resolve(str(folder), Workspace(folder / "ws")))
    tokenizer.add_tokens(RELEASED.new_tokens)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("recipe", [PAPER, RELEASED])
def test_a_recipe_survives_its_file(tmp_path: Path, recipe: object) -> None:
    changed = replace(RELEASED if recipe is RELEASED else PAPER, roles={"query": "self", "passage": "self"})
    (tmp_path / "llara.json").write_text(json.dumps(to_json(changed, 32)))
    assert read_recipe(tmp_path) == changed
    assert read_recipe(tmp_path) != recipe


def test_a_damaged_recipe_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "llara.json").write_text("{")
    with pytest.raises(UserError, match=r"llara\.json: not JSON"):
        read_recipe(tmp_path)
    with pytest.raises(UserError, match="not a recipe"):
        from_json({"recipe": {"name": "x"}}, "llara.json")


def test_released_checkpoints_are_recognised(tmp_path: Path, workspace: Workspace) -> None:
    assert resolve(str(released_folder(tmp_path / "LLARA-passage")), workspace).recipe == RELEASED
    assert resolve(str(make_model(tmp_path / "plain")), workspace).saved_recipe is None
    assert resolve(str(tmp_path / "plain"), workspace).recipe == PAPER


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Puts a folder into the hub's cache, as if it had been fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, name: str) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)

    return put


def test_a_hub_model_is_read_from_the_hubs_cache(
    tmp_path: Path, workspace: Workspace, hub: Callable[[Path, str], None]
) -> None:
    hub(released_folder(tmp_path / "made"), "somebody/LLARA-passage")
    source = resolve("somebody/LLARA-passage", workspace)
    assert source.name == "LLARA-passage"
    assert source.recipe == RELEASED
    assert source.fingerprint() == f"hub:somebody/LLARA-passage@{COMMIT}"
    assert TextTokenizer.load(source).prompt_ids(source.recipe).slots == 8
    wanted, found = (load_causal_lm(s, torch.float32) for s in (resolve(str(tmp_path / "made"), workspace), source))
    assert torch.equal(wanted.lm_head.weight, found.lm_head.weight)


def test_an_adapter_on_the_hub_is_put_on_its_base(
    tmp_path: Path, workspace: Workspace, hub: Callable[[Path, str], None]
) -> None:
    make_model(tmp_path / "base")
    model = load_causal_lm(resolve(str(tmp_path / "base"), workspace), torch.float32)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = "somebody/base"
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    hub(tmp_path / "base", "somebody/base")
    hub(tmp_path / "adapter", "somebody/adapter")
    source = resolve("somebody/adapter", workspace)
    assert source.base is not None
    assert source.base.path == "somebody/base"
    assert TextTokenizer.load(source).hf.eos_token == "</s>"
    merged = load_causal_lm(source, torch.float32).model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged, adapted.merge_and_unload().model.layers[0].self_attn.q_proj.weight)
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "adapter")
    hub(tmp_path / "adapter", "somebody/both")
    with pytest.raises(UserError, match=r"somebody/both: holds full weights \(model\.safetensors\) and an adapter"):
        resolve("somebody/both", workspace)


def test_a_hub_model_of_sentence_transformers_is_known_by_its_modules(
    tmp_path: Path, workspace: Workspace, hub: Callable[[Path, str], None]
) -> None:
    hub(make_sentence_model(tmp_path / "sentences"), "somebody/sentences")
    hub(make_model(tmp_path / "plain"), "somebody/plain")
    assert resolve("somebody/sentences", workspace).has_modules
    assert not resolve("somebody/plain", workspace).has_modules


def test_a_fingerprint_follows_the_content(tmp_path: Path, workspace: Workspace) -> None:
    folder = make_model(tmp_path / "a")
    first = resolve(str(folder), workspace).fingerprint()
    assert resolve(str(shutil.copytree(folder, tmp_path / "b")), workspace).fingerprint() == first
    make_model(folder, seed=1)
    assert resolve(str(folder), workspace).fingerprint() != first


@pytest.mark.parametrize("argument", ["/no/such", "./no/such", "a/b/c", "no.gguf", "no such", ""])
def test_what_names_no_model(argument: str, workspace: Workspace) -> None:
    with pytest.raises(UserError):
        resolve(argument, workspace)
