"""`llara clean` removes what can be rebuilt, and nothing else; `llara status` tells how much that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Llara, tree

from llara_cli.core import workspace
from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace, lock_place

SMALL = ("--max-length", 60, "--batch-size", 4, "--max-steps", 2, "--name", "m", "--json")


def test_the_cache_goes_and_artifacts_stay(llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    made = llara("pretrain", corpus, "--model", tiny_model, *SMALL).json
    before = tree(tmp_path / "ws")
    cached = {name: len(content) for name, content in before.items() if name.startswith("cache/")}
    assert cached
    assert llara("status", "--json").json["cache"] == {
        "path": str(tmp_path / "ws/cache"), "bytes": sum(cached.values())
    }  # fmt: skip
    assert "llara clean" in llara("status").out

    shown = llara("clean", "--dry-run", "--json").json
    assert {each["path"]: each["bytes"] for each in shown["files"]} == cached
    assert shown["bytes"] == sum(cached.values())
    assert tree(tmp_path / "ws") == before

    assert llara("clean", "--json").json == shown | {"dry_run": False}
    assert tree(tmp_path / "ws") == {name: content for name, content in before.items() if name not in cached}
    assert llara("status", "--json").json["cache"]["bytes"] == 0
    assert "llara clean" not in llara("status").out
    assert (
        llara("pretrain", corpus, "--model", tiny_model, *SMALL[:-2], "n", "--json").json["history"]
        == (made["history"])
    )


def test_leftovers_of_swaps_go_unless_they_are_all_that_is_left(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    llara("pretrain", corpus, "--model", tiny_model, *SMALL)
    models = tmp_path / "ws/models"
    for name in (".m.old", ".m.staging", ".lost.old"):
        (models / name).mkdir()
        (models / name / "manifest.json").write_text("{}")
    assert llara("clean").code == 0
    assert sorted(path.name for path in models.iterdir()) == [".lost.old", "m"]


def test_nothing_is_removed_while_a_command_works(llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    llara("pretrain", corpus, "--model", tiny_model, *SMALL)
    before = tree(tmp_path / "ws")
    with Workspace(tmp_path / "ws").lock("models/m"):
        done = llara("clean")
    assert done.code == 2
    assert "another command is working" in done.error
    assert tree(tmp_path / "ws") == before


def test_nothing_begins_while_the_workspace_is_cleaned(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even under a name that is new, whose lock could not be taken before."""
    root = tmp_path / "ws"
    root.mkdir()
    monkeypatch.setattr(workspace, "GATE_SECONDS", 0)
    with Workspace(root).alone():
        done = llara("pretrain", corpus, "--model", tiny_model, *SMALL)
        with pytest.raises(UserError, match="llara clean is running"), lock_place(root, "examples-of-some-corpus", -1):
            pass
        assert "another command is working" in llara("clean").error
    assert (done.code, done.error) == (2, f"error: llara clean is running in {root}; run this again later")
    assert tree(root) == {}
    assert llara("pretrain", corpus, "--model", tiny_model, *SMALL).code == 0


def test_where_there_is_nothing_to_remove(llara: Llara, tmp_path: Path) -> None:
    done = llara("clean")
    assert (done.code, done.out.strip()) == (0, f"nothing to remove in {tmp_path / 'ws'}")
    assert not (tmp_path / "ws").exists()
