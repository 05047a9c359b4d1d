"""An approximate index that finds fewer hits than were wanted: told once a command, with the setting to raise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from program import Llara, write_jsonl

pytest.importorskip("faiss", reason="extra faiss is not installed")
COUNT, DIM = 60, 32


@pytest.fixture
def lists(llara: Llara, tiny_model: Path, tmp_path: Path) -> str:
    """An index of four lists, of which a search looks at one."""
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32))
    (tmp_path / "e.npy.ids.txt").write_text("".join(f"d{n}\n" for n in range(COUNT)))
    assert llara("encode", "--from", tmp_path / "e.npy", "--model", tiny_model, "--name", "e").code == 0
    flags = ("--backend", "faiss", "--spec", "IVF4,Flat", "--set", "nprobe=1", "--name", "lists")
    assert llara("index", "e", *flags).code == 0
    return "lists"


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("warning: ")]


def test_one_query(llara: Llara, lists: str) -> None:
    outcome = llara("search", "boats", "-k", 50, "--json")
    assert outcome.code == 0
    assert len(outcome.json["hits"]) < 50
    assert warnings(outcome.err) == [
        "warning: 1 of 1 queries got fewer than 50 hits: the index searched only part of its vectors; "
        "raise --set nprobe=..."
    ]
    for enough in (("-k", 3), ("-k", 50, "--set", "nprobe=4"), ("-k", 999, "--set", "nprobe=4")):
        assert warnings(llara("search", "boats", *enough).err) == []


def test_a_file_of_queries(llara: Llara, lists: str, tmp_path: Path) -> None:
    queries = write_jsonl(tmp_path / "q.jsonl", [{"_id": f"q{n}", "text": f"boats {n}"} for n in range(4)])
    flags = ("--queries", queries, "--output", tmp_path / "run.trec", "-k", 50)
    (warning,) = warnings(llara("search", *flags).err)
    assert warning.startswith("warning: 4 of 4 queries got fewer than 50 hits")


def test_removed_vectors_are_no_reason_to_warn(llara: Llara, lists: str, tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("".join(f"d{n}\n" for n in range(COUNT - 5)))
    assert llara("index", "--remove", tmp_path / "gone", "--name", lists).code == 0
    outcome = llara("search", "boats", "-k", 50, "--set", "nprobe=4", "--json")
    assert len(outcome.json["hits"]) == 5
    assert warnings(outcome.err) == []


def test_mining(llara: Llara, lists: str, train: Path) -> None:
    outcome = llara("mine", train, "--index", lists, "--depth", 50, "--per-query", 2)
    assert outcome.code == 0, outcome.err
    (warning,) = warnings(outcome.err)
    assert warning.startswith("warning: 5 of 5 queries got fewer than 50 hits")
