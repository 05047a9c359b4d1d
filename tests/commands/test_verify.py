"""``llara status --verify``: what was damaged is named, and never stops the rest from being looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from program import Llara, tree


@pytest.fixture
def workspace(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """Two embeddings and an index."""
    for name in ("first", "second"):
        assert llara("encode", beir, "--model", tiny_model, "--name", name, "--shard-size", 2).code == 0
    assert llara("index", "second", "--name", "library").code == 0
    return tmp_path / "ws"


def flip(path: Path) -> None:
    """One bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """The last byte is gone."""
    path.write_bytes(path.read_bytes()[:-1])


def test_sound_artifacts(llara: Llara, workspace: Path) -> None:
    before = tree(workspace)
    outcome = llara("status", "--verify")
    assert outcome.code == 0
    assert "every file is as it was written" in outcome.out
    assert "verifying" in outcome.err
    told = llara("status", "--verify", "--json").json
    assert told["damaged"] == []
    assert len(told["artifacts"]) == 3
    assert "every file" not in llara("status").out
    assert tree(workspace) == before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "content has changed"),
        (cut, "bytes, not"),
        (Path.unlink, "missing"),
        (lambda path: path.with_name("more.npy").write_text("x"), "not in the manifest"),
    ],
    ids=["flipped", "cut", "missing", "extra"],
)
def test_damage_is_named(llara: Llara, workspace: Path, damage: Callable[[Path], object], problem: str) -> None:
    damage(workspace / "embeddings" / "first" / "vectors-00002.npy")
    name = "more.npy" if "manifest" in problem else "vectors-00002.npy"
    outcome = llara("status", "--verify", "--json")
    assert outcome.code == 1
    (found,) = outcome.json["damaged"]
    assert found.startswith(f"embeddings/first/{name}: ")
    assert problem in found
    assert f"embeddings/first/{name}" in outcome.error
    shown = llara("status", "--verify")
    assert found in shown.out
    assert shown.code == 1
    assert llara("status").code == 0


def test_every_damaged_file_is_named(llara: Llara, workspace: Path) -> None:
    flip(workspace / "embeddings/second/texts.arrow")
    cut(workspace / "embeddings/first/ids.txt")
    index = next(path for path in (workspace / "indexes/library/backend").iterdir())
    index.unlink()
    found = llara("status", "--verify", "--json").json["damaged"]
    assert [line.partition(": ")[0] for line in found] == [
        "embeddings/first/ids.txt",
        "embeddings/second/texts.arrow",
        f"indexes/library/backend/{index.name}",
    ]


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe", b"[]", b'{"settings": {}}', b"null"],
    ids=["cut", "empty", "bytes", "list", "part", "null"],
)
def test_a_damaged_manifest_stops_nothing(llara: Llara, workspace: Path, content: bytes) -> None:
    (workspace / "embeddings/first/manifest.json").write_bytes(content)
    outcome = llara("status", "--json")
    assert outcome.code == 0
    assert [row["name"] for row in outcome.json["artifacts"]] == ["second", "library"]
    (found,) = outcome.json["damaged"]
    assert found.startswith("embeddings/first/manifest.json: ")
    assert "embeddings/first/manifest.json" in llara("status").out
    flip(workspace / "embeddings/second/vectors-00000.npy")
    verified = llara("status", "--verify", "--json")
    assert verified.code == 1
    assert len(verified.json["damaged"]) == 2
    for command in (("index", "first"), ("export", "first", workspace / "x.npy")):
        stopped = llara(*command)
        assert (stopped.code, "embeddings/first/manifest.json: " in stopped.error) == (1, True)


def test_a_manifest_without_a_checksum(llara: Llara, workspace: Path) -> None:
    path = workspace / "embeddings/first/manifest.json"
    made = json.loads(path.read_text())
    made["files"]["ids.txt"] = {}
    path.write_text(json.dumps(made))
    assert "no size and sha256" in llara("status", "--verify", "--json").json["damaged"][0]


def test_nothing_there_is_not_damaged(llara: Llara) -> None:
    assert llara("status", "--verify").code == 0


def scramble(path: Path) -> None:
    """What no file begins with, and no text holds."""
    content = path.read_bytes()
    path.write_bytes(b"\xff" * 300 + content[300:])


@pytest.mark.parametrize("damage", [Path.unlink, scramble], ids=["gone", "scrambled"])
@pytest.mark.parametrize("name", ["ids.txt", "texts.arrow"])
def test_a_search_names_the_damaged_file(
    llara: Llara, workspace: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(workspace / "embeddings/second" / name)
    outcome = llara("search", "the sea")
    assert outcome.code == 1
    if "vectors, but there are" not in outcome.error:
        assert f"embeddings/second/{name}: missing or damaged: " in outcome.error


def test_a_flipped_text_does_not_end_the_process(llara: Llara, workspace: Path) -> None:
    """Whichever byte of the texts it is: an error that names the file, or a text that reads otherwise."""
    path = workspace / "embeddings/second/texts.arrow"
    whole = path.read_bytes()
    for place in range(8, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        outcome = llara("search", "the sea", "--json")
        assert outcome.code == 0 or "damaged" in outcome.error, (place, outcome.err)


def test_a_lost_shard_is_damage_and_not_a_mistake(llara: Llara, workspace: Path) -> None:
    (workspace / "embeddings/first/vectors-00001.npy").unlink()
    for command in (("index", "first"), ("export", "first", workspace / "x.npy")):
        outcome = llara(*command)
        assert (outcome.code, "embeddings/first is damaged" in outcome.error) == (1, True)
    assert not (workspace / "indexes/first-exact").exists()
