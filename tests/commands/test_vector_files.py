"""Vectors out of the workspace and into it, as ``.npy`` and as ``.parquet``."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from program import Llara, tree

DIM = 32
FORMATS = ["npy", "parquet"]


@pytest.fixture
def encoded(llara: Llara, beir: Path, tiny_model: Path) -> Path:
    """Five passages in shards of two."""
    made = llara("encode", beir, "--model", tiny_model, "--name", "passages", "--shard-size", 2, "--json").json
    return Path(made["path"])


def matrix(folder: Path | str) -> np.ndarray:
    """All shards of an artifact."""
    return np.concatenate([np.load(path) for path in sorted(Path(folder).glob("vectors-*.npy"))])


def write_npy(path: Path, vectors: np.ndarray, ids: list[str]) -> Path:
    """A file of vectors with its ids."""
    np.save(path, vectors)
    path.with_name(path.name + ".ids.txt").write_text("".join(f"{name}\n" for name in ids))
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    """A file of columns."""
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def directions(count: int = 5, dim: int = DIM) -> np.ndarray:
    """(count, dim) of any length."""
    return np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)


def take_in(llara: Llara, file: Path, model: Path, *more: object) -> dict[str, Any]:
    """The result of a good import."""
    outcome = llara("encode", "--from", file, "--model", model, "--json", *more)
    assert outcome.code == 0, outcome.err
    return outcome.json


def refusal(llara: Llara, workspace: Path, file: Path, *more: object) -> str:
    """The error line of an import that must leave nothing."""
    before = tree(workspace) if workspace.exists() else {}
    outcome = llara("encode", "--from", file, *more)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert (tree(workspace) if workspace.exists() else {}) == before
    return outcome.error


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("store", ["fp32", "fp16"])
def test_there_and_back_changes_nothing(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path, form: str, store: str
) -> None:
    command = ("--shard-size", 2, "--store", store)
    made = llara("encode", beir, "--model", tiny_model, "--name", "a", *command, "--json").json
    file = tmp_path / f"out.{form}"
    told = llara("export", "a", file, "--json").json
    assert list(told) == ["embeddings", "file", "count", "dim", "bytes", "seconds"]
    assert (told["embeddings"], told["count"], told["dim"]) == ("a", 5, DIM)
    back = take_in(llara, file, tiny_model, "--name", "b", *command)
    assert list(back) == list(made)
    one, two = (tree(Path(folder)) for folder in (made["path"], back["path"]))
    same = {name for name in one if name.startswith("vectors-")} | {"ids.txt"}
    same |= {"texts.arrow"} if form == "parquet" else set()
    assert len(same) >= 4
    assert {name: one[name] for name in same} == {name: two[name] for name in same}


def test_the_exported_files_are_what_other_tools_read(llara: Llara, encoded: Path, tmp_path: Path) -> None:
    assert llara("export", "passages", tmp_path / "a.npy").code == 0
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    np.testing.assert_array_equal(found, matrix(encoded))
    assert (tmp_path / "a.npy.ids.txt").read_text() == "d0\nd1\nd2\nd3\nd4\n"
    assert llara("export", "passages", tmp_path / "a.parquet").code == 0
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.names == ["id", "vector", "title", "text"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), found)
    assert table["id"].to_pylist() == ["d0", "d1", "d2", "d3", "d4"]
    assert table["title"].to_pylist() == ["T0", "T1", "T2", "T3", "T4"]
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_existing_file_is_replaced_by_force_only(llara: Llara, encoded: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"a.{form}"
    file.write_text("mine")
    outcome = llara("export", "passages", file)
    assert outcome.code == 2
    assert "--force" in outcome.error
    assert file.read_text() == "mine"
    assert llara("export", "passages", file, "--force").code == 0
    assert file.stat().st_size > 600


def test_links_to_the_three_files_stay_links(llara: Llara, encoded: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    names = ("a.npy", "a.npy.ids.txt", "a.npy.model.json")
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
        (tmp_path / "far" / name).write_text("of before")
    assert llara("export", "passages", tmp_path / "a.npy", "--force").code == 0
    assert all((tmp_path / name).is_symlink() for name in names)
    assert json.loads((tmp_path / "far/a.npy.model.json").read_text())["model"] == "tiny"


def test_an_origin_that_is_a_pipe_is_written_into_and_stays(llara: Llara, encoded: Path, tmp_path: Path) -> None:
    pipe, found = tmp_path / "a.npy.model.json", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    assert llara("export", "passages", tmp_path / "a.npy").code == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    reader.join(timeout=30)
    assert json.loads(found[0])["model"] == "tiny"


def test_bad_exports(llara: Llara, encoded: Path, tmp_path: Path) -> None:
    for name, message in (
        ("a.csv", ".npy or .parquet"),
        ("a", ".npy or .parquet"),
        ("no/a.npy", "no such folder"),
    ):
        outcome = llara("export", "passages", tmp_path / name)
        assert outcome.code == 2
        assert message in outcome.error
    (tmp_path / "folder.npy").mkdir()
    assert "is a folder" in llara("export", "passages", tmp_path / "folder.npy").error
    assert "unknown embedding 'other'" in llara("export", "other", tmp_path / "a.npy").error


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("missing", ["vectors-00001.npy", "ids.txt"])
def test_damaged_embeddings_are_not_exported(
    llara: Llara, encoded: Path, tmp_path: Path, form: str, missing: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    if missing == "ids.txt":
        (encoded / missing).write_text("d0\nd1\n")
    else:
        (encoded / missing).unlink()
    outcome = llara("export", "passages", tmp_path / f"a.{form}")
    assert outcome.code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", FORMATS)
def test_vectors_of_another_tool_are_normalized_and_searched(
    llara: Llara, tiny_model: Path, tmp_path: Path, form: str
) -> None:
    vectors, ids = directions(), [f"p{i}" for i in range(5)]
    if form == "npy":
        file = write_npy(tmp_path / "theirs.npy", np.asfortranarray(vectors.astype(">f8")), ids)
    else:
        columns = {"id": ids, "embedding": vectors.tolist(), "text": [f"text {i}" for i in range(5)]}
        file = write_parquet(tmp_path / "theirs.parquet", **columns)
    outcome = llara("encode", "--from", file, "--model", tiny_model, "--shard-size", 2, "--json")
    assert "5 of 5 vectors were not of length 1: L2-normalized" in outcome.err
    assert outcome.json["name"] == "tiny-theirs"
    wanted = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(outcome.json["path"]), wanted, atol=1e-6)
    assert [len(np.load(path)) for path in sorted(Path(outcome.json["path"]).glob("vectors-*"))] == [2, 2, 1]
    assert llara("index").code == 0
    hits = llara("search", "the sea", "-k", 5, "--json").json["hits"]
    assert {hit["id"] for hit in hits} == set(ids)
    assert {hit["text"] for hit in hits} == ({""} if form == "npy" else {f"text {i}" for i in range(5)})
    again = llara("encode", "--from", file, "--model", tiny_model, "--shard-size", 2, "--json")
    assert again.json == outcome.json
    assert "finished already" in again.err


@pytest.mark.parametrize("form", FORMATS)
def test_vectors_go_by_the_model_that_made_them_and_never_by_the_newest(
    llara: Llara, encoded: Path, train: Path, tiny_model: Path, tmp_path: Path, form: str
) -> None:
    file = tmp_path / f"out.{form}"
    assert llara("export", "passages", file).code == 0
    tuned = llara("finetune", train, "--model", tiny_model, "--max-steps", 1, "--name", "newest")
    assert tuned.code == 0, tuned.err
    back = llara("encode", "--from", file, "--json")
    assert back.json["model"] == "tiny"
    made = [json.loads((Path(place) / "manifest.json").read_text()) for place in (encoded, back.json["path"])]
    assert made[0]["parents"] == made[1]["parents"]
    place = file if form == "parquet" else tmp_path / "out.npy.model.json"
    assert f"model: tiny (as {place} says)" in back.err
    claim = json.loads((Path(back.json["path"]) / "run.json").read_text())["claim"]
    assert claim == {"model": "tiny", "fingerprint": made[0]["parents"]["model"], "said_by": place.name}
    told = refusal(llara, tmp_path / "ws", file, "--model", "newest")
    assert f"{place} says that the vectors were made by model 'tiny', not by 'newest'" in told
    assert "--as passage, not query" in refusal(llara, tmp_path / "ws", file, "--as", "query")
    assert llara("index", back.json["name"]).code == 0
    assert llara("search", "the sea").code == 0


@pytest.mark.parametrize("form", FORMATS)
def test_vectors_of_nobody_knows_which_model_need_it_named(
    llara: Llara, encoded: Path, tiny_model: Path, tmp_path: Path, form: str
) -> None:
    ids, vectors = list("abcde"), directions()
    file = tmp_path / f"theirs.{form}"
    if form == "npy":
        write_npy(file, vectors, ids)
    else:
        write_parquet(file, id=ids, vector=vectors.tolist())
    assert "name the model with --model" in refusal(llara, tmp_path / "ws", file)
    made = take_in(llara, file, tiny_model)
    assert json.loads((Path(made["path"]) / "run.json").read_text())["claim"]["said_by"] == "--model"


def test_an_exported_model_that_is_gone_or_told_of_badly(
    llara: Llara, encoded: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert llara("export", "passages", tmp_path / "out.npy").code == 0
    told = tmp_path / "out.npy.model.json"
    origin = json.loads(told.read_text())
    assert origin["source"] == str(tiny_model.resolve())
    for source, message in (("/no/such/folder", "no such folder or file: /no/such/folder"), ("gone", "models/gone")):
        told.write_text(json.dumps(origin | {"source": source}))
        error = refusal(llara, tmp_path / "ws", tmp_path / "out.npy")
        assert "made by 'tiny', which was not found: " in error
        assert message in error
        assert llara("encode", "--from", tmp_path / "out.npy", "--model", tiny_model, "--dry-run").code == 0
    roles = [json.dumps(origin | {"role": role}) for role in (5, "author")]
    for text in ("{", "[]", "null", '{"model": "tiny"}', *roles, "\udcff"):
        told.write_bytes(text.encode(errors="surrogateescape"))
        assert "out.npy.model.json: the record of the vectors' model is damaged" in refusal(
            llara, tmp_path / "ws", tmp_path / "out.npy"
        )


def test_an_origin_of_other_vectors_is_refused(llara: Llara, encoded: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Another tool has written the file anew, and left what llara wrote beside it."""
    file = tmp_path / "out.npy"
    assert llara("export", "passages", file).code == 0
    np.save(file, np.load(file)[::-1])
    told = refusal(llara, tmp_path / "ws", file, "--model", tiny_model)
    assert "out.npy.model.json is of other vectors than those in out.npy: delete it" in told
    (tmp_path / "out.npy.model.json").unlink()
    assert llara("encode", "--from", file, "--model", tiny_model, "--name", "back").code == 0


@pytest.mark.parametrize("form", FORMATS)
def test_flags_that_an_exported_file_answers_need_not_be_given(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path, form: str
) -> None:
    used = ("--encoder", "sentence-transformers", "--as", "query")
    made = llara("encode", beir, "--model", tiny_model, *used, "--name", "a", "--json")
    assert made.code == 0, made.err
    file = tmp_path / f"out.{form}"
    assert llara("export", "a", file).code == 0
    back = llara("encode", "--from", file, "--json")
    assert back.code == 0, back.err
    place = file if form == "parquet" else tmp_path / "out.npy.model.json"
    assert f"encoder: sentence-transformers (as {place} says)" in back.err
    assert f"as: query (as {place} says)" in back.err
    settings = json.loads((Path(back.json["path"]) / "manifest.json").read_text())["settings"]
    assert (settings["encoder"], settings["as"]) == ("sentence-transformers", "query")
    assert "--encoder sentence-transformers, not torch" in refusal(llara, tmp_path / "ws", file, "--encoder", "torch")
    assert "--as query, not passage" in refusal(llara, tmp_path / "ws", file, "--as", "passage")


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_vectors_is_hashed_once(
    llara: Llara, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    file = tmp_path / f"out.{form}"
    assert llara("export", "passages", file).code == 0
    content, sha256, hashed = file.read_bytes(), hashlib.sha256, []

    class Watched:
        """The hash, and whether it was the whole file's."""

        def __init__(self, data: bytes = b"") -> None:
            self.inner = sha256(data)

        def update(self, data: bytes) -> None:
            hashed.append(bytes(data) == content)
            self.inner.update(data)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Watched)
    assert llara("encode", "--from", file, "--name", "back", "--shard-size", 2).code == 0
    assert sum(hashed) == 1


def test_a_plan_and_a_query_side(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    file = write_npy(tmp_path / "theirs.npy", directions(), list("abcde"))
    plan = take_in(llara, file, tiny_model, "--dry-run")
    assert (plan["texts"], plan["dim"], plan["shards"], plan["disk"]) == (5, DIM, 1, 5 * DIM * 4)
    assert not (tmp_path / "ws/embeddings").exists()
    made = take_in(llara, file, tiny_model, "--as", "query")
    settings = json.loads((Path(made["path"]) / "manifest.json").read_text())["settings"]
    assert (made["name"], settings["as"]) == ("tiny-theirs-query", "query")


def test_zero_vectors_are_warned_of(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    vectors = directions(2)
    vectors[1] = 0
    file = write_npy(tmp_path / "theirs.npy", vectors, ["a", "b"])
    outcome = llara("encode", "--from", file, "--model", tiny_model)
    assert outcome.code == 0
    assert "warning: 1 of 2 vectors are zero" in outcome.err


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_no_number_is_named_by_its_row(
    llara: Llara, tiny_model: Path, tmp_path: Path, form: str, bad: float
) -> None:
    vectors = directions().astype(np.float64)
    vectors[3, 7] = bad
    file = tmp_path / f"theirs.{form}"
    if form == "npy":
        write_npy(file, vectors, list("abcde"))
    else:
        write_parquet(file, id=list("abcde"), vector=vectors.tolist())
    message = refusal(llara, tmp_path / "ws", file, "--model", tiny_model, "--shard-size", 2)
    assert f"theirs.{form}: row 4: NaN, infinite or huge" in message


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a", "d", "e"], "ids.txt:3: the id 'a' is not unique: "),
        (["a", "", "c", "d", "e"], 'ids.txt:2: "id" is empty'),
        (["a", "b", "c", "d"], "4 ids, but"),
        (["a", "b", "c", "d", "e", "f"], "6 ids, but"),
        (["a", "b\tc", "c", "d", "e"], "ids.txt:2"),
    ],
)
def test_bad_ids(llara: Llara, tiny_model: Path, tmp_path: Path, ids: list[str], message: str) -> None:
    file = write_npy(tmp_path / "theirs.npy", directions(), ids)
    assert message in refusal(llara, tmp_path / "ws", file, "--model", tiny_model)


def test_bad_npy_files(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    def told(vectors: Any, ids: list[str] | None = None) -> str:
        file = write_npy(tmp_path / "theirs.npy", vectors, ids or list("abcde"))
        return refusal(llara, tmp_path / "ws", file, "--model", tiny_model)

    assert "vectors of 31 numbers, but the model's have 32" in told(directions(dim=31))
    assert "floats of shape (vectors, dim)" in told(directions()[0])
    assert "int64" in told(np.ones((5, DIM), np.int64))
    ragged = np.empty(5, object)
    ragged[:] = [[1.0] * (DIM - i) for i in range(5)]
    assert "Python objects" in told(ragged)
    assert "no vectors in it" in told(np.empty((0, DIM), np.float32))
    file = write_npy(tmp_path / "cut.npy", directions(), list("abcde"))
    file.write_bytes(file.read_bytes()[:-40])
    assert "damaged or incomplete .npy file" in refusal(llara, tmp_path / "ws", file, "--model", tiny_model)
    file.write_bytes(pickle.dumps({"a": 1}))
    assert "damaged or incomplete .npy file" in refusal(llara, tmp_path / "ws", file, "--model", tiny_model)
    (tmp_path / "cut.npy.ids.txt").unlink()
    write_npy(file, directions(), list("abcde"))
    (tmp_path / "cut.npy.ids.txt").unlink()
    assert "no such file" in refusal(llara, tmp_path / "ws", file, "--model", tiny_model)


def test_bad_parquet_files(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    good: dict[str, Any] = {"id": list("abcde"), "vector": directions().tolist(), "text": ["x"] * 5}

    def told(**changed: Any) -> str:
        columns = {name: column for name, column in (good | changed).items() if column is not None}
        file = write_parquet(tmp_path / "theirs.parquet", **columns)
        return refusal(llara, tmp_path / "ws", file, "--model", tiny_model, "--shard-size", 2)

    rows = good["vector"]
    assert "row 4: a vector of 31 numbers, but the model's have 32" in told(vector=[*rows[:3], rows[3][:31], rows[4]])
    assert "row 1: a vector of 31 numbers" in told(vector=[row[:31] for row in rows])
    assert "row 5: no vector" in told(vector=[*rows[:4], None])
    assert "row 2: NaN" in told(vector=[rows[0], [None, *rows[1][1:]], *rows[2:]])
    assert 'no "vector" column' in told(vector=None)
    assert "lists of floats" in told(vector=list("abcde"))
    assert "row 3: the id 'a' is not unique" in told(id=list("abade"))
    assert 'no "_id" field' in told(id=None)
    assert "row 1" in told(text=[1] * 5)
    file = write_parquet(tmp_path / "theirs.parquet", **good)
    file.write_bytes(file.read_bytes()[:-50])
    assert "damaged or incomplete parquet file" in refusal(llara, tmp_path / "ws", file, "--model", tiny_model)


def test_what_does_not_go_together(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    file = write_npy(tmp_path / "theirs.npy", directions(), list("abcde"))
    workspace = tmp_path / "ws"
    assert "give one of" in refusal(llara, workspace, file, beir, "--model", tiny_model)
    assert "--max-length" in refusal(llara, workspace, file, "--model", tiny_model, "--max-length", 50)
    assert ".npy or .parquet" in refusal(llara, workspace, tmp_path / "x.csv", "--model", tiny_model)
    assert "no such file" in refusal(llara, workspace, tmp_path / "x.npy", "--model", tiny_model)
    outcome = llara("encode", "--model", tiny_model)
    assert outcome.code == 2
    assert "give one of" in outcome.error
