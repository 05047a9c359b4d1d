"""``llara index --append`` and ``--remove``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from program import Llara, tree, write_jsonl
from tiny import TEXTS

from llara_cli.core import registry
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import IndexBackend
from llara_cli.core.workspace import Workspace
from llara_cli.pipelines import update_index
from llara_cli.pipelines.update_index import Changing

BACKENDS = ("exact", "faiss", "hnsw")


@pytest.fixture
def library(llara: Llara, tiny_model: Path, tmp_path: Path) -> Llara:
    """Two sets of embeddings, ``one`` (d0, d1, d2) and ``two`` (d3, d4)."""
    rows = [{"_id": f"d{n}", "title": f"T{n}", "text": text} for n, text in enumerate(TEXTS[:5])]
    for name, part in {"one": rows[:3], "two": rows[3:]}.items():
        assert llara("encode", write_jsonl(tmp_path / f"{name}.jsonl", part), "--model", tiny_model, "--name", name)
    return llara


def found(llara: Llara, query: str = "the sea") -> dict[str, dict[str, Any]]:
    """Every hit by its id."""
    return {hit["id"]: hit for hit in llara("search", query, "-k", 9, "--json").json["hits"]}


def ids(path: Path, *names: str) -> Path:
    """A file of ids."""
    path.write_text("".join(name + "\n" for name in names))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_appended_is_found_with_its_text(library: Llara, backend: str) -> None:
    library("index", "one", "--backend", backend, "--name", "i")
    result = library("index", "two", "--append", "--name", "i", "--json").json
    assert (result["count"], result["backend"], result["name"]) == (5, backend, "i")
    hits = found(library)
    assert {name: hit["text"] for name, hit in hits.items()} == {f"d{n}": TEXTS[n] for n in range(5)}
    assert hits["d4"]["title"] == "T4"
    again = library("index", "two", "--append", "--name", "i", "--json")
    assert again.json["count"] == 5
    assert "nothing to do" in again.err
    assert library("status", "--verify").code == 0
    rows = {row["name"]: row for row in library("status", "--json").json["artifacts"]}
    assert set(rows["i"]["parents"].values()) == {"one", "two", "tiny"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_removed_is_never_found(library: Llara, tmp_path: Path, backend: str) -> None:
    library("index", "one", "--backend", backend)
    assert library("index", "two", "--append").code == 0  # the only index needs no name
    before = found(library)
    assert library("index", "--remove", ids(tmp_path / "gone", "d1", "d3"), "--json").json["count"] == 3
    after = found(library)
    assert after.keys() == {"d0", "d2", "d4"}
    assert [after[name]["score"] for name in after] == [before[name]["score"] for name in after]
    assert "nothing to do" in library("index", "--remove", ids(tmp_path / "gone", "d1", "d3")).err
    assert library("index", "--remove", ids(tmp_path / "gone", "d1", "d4"), "--json").json["count"] == 2
    assert found(library).keys() == {"d0", "d2"}
    assert library("status", "--verify").code == 0


def test_a_removed_id_may_come_back(library: Llara, tiny_model: Path, tmp_path: Path) -> None:
    library("index", "one", "--name", "i")
    library("encode", write_jsonl(tmp_path / "new.jsonl", [{"_id": "d1", "text": "another text"}]),
            "--model", tiny_model, "--name", "new")  # fmt: skip
    refused = library("index", "new", "--append", "--name", "i")
    assert (refused.code, refused.error) == (2, "error: index 'i' has an id 'd1' already: --remove it first")
    library("index", "--remove", ids(tmp_path / "gone", "d1"), "--name", "i")
    assert library("index", "new", "--append", "--name", "i", "--json").json["count"] == 3
    assert found(library)["d1"]["text"] == "another text"


def test_a_run_has_no_removed_document(library: Llara, tmp_path: Path) -> None:
    library("index", "one")
    library("index", "two", "--append")
    library("index", "--remove", ids(tmp_path / "gone", "d2"))
    queries = write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "the sea"}])
    assert library("search", "--queries", queries, "--output", tmp_path / "run.trec").code == 0
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert sorted(line[2] for line in lines) == ["d0", "d1", "d3", "d4"]
    assert [line[3] for line in lines] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("two", "--append", "--remove", "x"), "--append and --remove cannot go together"),
        (("--append",), "--append needs the name of the embeddings"),
        (("two", "--remove", "x"), "--remove takes no embeddings"),
        (("two", "--append", "--restart"), "--restart cannot be given with them"),
        (("two", "--append", "--backend", "exact", "--device", "cpu"), "--backend, --device cannot be given with them"),
        (("--remove", "x", "--set", "ef=1", "--spec", "Flat"), "--spec, --set cannot be given with them"),
        (("two", "--append", "--name", "none"), "unknown index 'none'"),
        (("--remove", "no-such-file"), "no such file: no-such-file"),
        (("--remove", "{gone}"), "gone:2: index 'i' has no id 'd9'"),
        (("--remove", "{all}"), "index 'i' would be empty"),
        (("other", "--append"), "of model"),
    ],
)
def test_mistakes_leave_the_index_as_it_was(
    library: Llara, tmp_path: Path, tiny_model: Path, arguments: tuple[str, ...], says: str
) -> None:
    files = {"gone": ids(tmp_path / "gone", "d0", "d9"), "all": ids(tmp_path / "all", "d0", "d1", "d2")}
    library("index", "one", "--name", "i")
    if "other" in arguments:
        other = tmp_path / "other-model"
        other.mkdir()
        for file in Path(tiny_model).iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / "generation_config.json").write_text(json.dumps({"note": 1}))
        library("encode", tmp_path / "two.jsonl", "--model", other, "--name", "other")
    before = tree(tmp_path / "ws/indexes")
    outcome = library("index", *(argument.format(**files) for argument in arguments))
    assert outcome.code == 2
    assert says in outcome.error
    assert tree(tmp_path / "ws/indexes") == before


def test_defaults_of_the_workspace_do_not_hinder_a_change(library: Llara, tmp_path: Path) -> None:
    library("index", "one", "--name", "i")
    (tmp_path / "ws/llara.toml").write_text('[index]\nbackend = "faiss"\nspec = "Flat"\n')
    assert library("index", "two", "--append", "--name", "i").code == 0
    assert len(found(library)) == 5


@pytest.mark.parametrize("name", ["a\u00a0b ", " b", "c  d", "e\ufeff", "f\u3000\u200b", "#g", '"h"'])
def test_an_id_is_removed_as_it_is_written(library: Llara, tiny_model: Path, tmp_path: Path, name: str) -> None:
    rows = [{"_id": name, "text": "a text"}, {"_id": name.strip() + "x", "text": "another"}]
    library("encode", write_jsonl(tmp_path / "odd.jsonl", rows), "--model", tiny_model, "--name", "odd")
    library("index", "odd", "--name", "i")
    assert library("index", "--remove", ids(tmp_path / "gone", name), "--json").json["count"] == 1
    assert found(library).keys() == {name.strip() + "x"}


def test_a_lost_list_of_removed_rows_is_no_empty_one(library: Llara, tmp_path: Path) -> None:
    library("index", "one", "--name", "i")
    library("index", "--remove", ids(tmp_path / "gone", "d1"))
    removed = tmp_path / "ws/indexes/i/removed.npy"
    whole = removed.read_bytes()
    for damaged in (whole[:-9], whole[:20], whole[:-8] + b"\x09" + bytes(7), whole[:-8] + b"\xff" * 8, None):
        removed.unlink()
        if damaged is not None:
            removed.write_bytes(damaged)
        outcome = library("search", "the sea")
        assert (outcome.code, "removed.npy: " in outcome.error, "damaged" in outcome.error) == (1, True, True)
        assert "index: i" not in outcome.err  # before any weight is loaded
        removed.write_bytes(whole)
    assert found(library).keys() == {"d0", "d2"}


def test_a_change_that_another_one_overtook_is_refused(library: Llara, tmp_path: Path) -> None:
    library("index", "one", "--name", "i")
    workspace = Workspace(tmp_path / "ws")
    late = Changing(workspace, workspace.get("indexes", "i"))
    assert library("index", "two", "--append", "--name", "i").code == 0
    after = tree(tmp_path / "ws/indexes")
    with pytest.raises(UserError, match="'i' was changed by another process meanwhile"):
        late.remove(ids(tmp_path / "gone", "d0"))
    assert tree(tmp_path / "ws/indexes") == after


def test_a_change_begins_with_the_index_as_it_is_now(library: Llara, tmp_path: Path) -> None:
    """Not as it was when somebody first looked at its manifest."""
    library("index", "one", "--name", "i")
    workspace = Workspace(tmp_path / "ws")
    index = workspace.get("indexes", "i")
    assert index.manifest["counts"]["count"] == 3
    assert library("index", "two", "--append", "--name", "i").code == 0
    made = Changing(workspace, index).remove(ids(tmp_path / "gone", "d4"))
    assert made["count"] == 4
    assert found(library).keys() == {"d0", "d1", "d2", "d3"}


def test_an_interrupted_change_leaves_the_old_index(
    library: Llara, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("index", "one", "--name", "i")
    before = tree(tmp_path / "ws/indexes/i")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(update_index, "finish", interrupt)
        assert library("index", "two", "--append", "--name", "i").code == 130
    assert tree(tmp_path / "ws/indexes/i") == before
    assert found(library).keys() == {"d0", "d1", "d2"}
    assert library("index", "two", "--append", "--name", "i").code == 0
    assert len(found(library)) == 5
    assert [path.name for path in (tmp_path / "ws/indexes").iterdir()] == ["i"]


def test_a_backend_that_cannot_add_says_so_and_leaves_nothing(
    library: Llara, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("index", "one", "--name", "i")
    before = tree(tmp_path / "ws/indexes")
    monkeypatch.setattr(registry.load("index", "exact"), "append", IndexBackend.append)
    outcome = library("index", "two", "--append")
    assert (outcome.code, "the exact index cannot add vectors" in outcome.error) == (2, True)
    assert tree(tmp_path / "ws/indexes") == before
