"""What a model argument names, and which recipe comes with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_model

from llara_cli.console import UserError
from llara_cli.model.recipe import PAPER, RELEASED, from_json, read_recipe, to_json
from llara_cli.model.source import resolve
from llara_cli.model.tokens import TextTokenizer
from llara_cli.workspace import Workspace


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


def test_a_hub_model_is_read_from_the_hubs_cache(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = released_folder(tmp_path / "made")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--LLARA-passage"
    shutil.copytree(released, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = resolve("somebody/LLARA-passage", workspace)
    assert source.name == "LLARA-passage"
    assert source.recipe == RELEASED
    assert source.fingerprint() == f"hub:somebody/LLARA-passage@{commit}"
    assert TextTokenizer.load(source).prompt_ids(source.recipe).slots == 8


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
