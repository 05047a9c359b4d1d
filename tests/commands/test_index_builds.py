"""A killed index build leaves no index, and the same command afterwards builds a good one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from program import Llara, start, tree

COUNT, DIM, KILLS = 6000, 32, int(os.environ.get("LLARA_TEST_KILLS", "1"))
BACKENDS = {
    "exact": ("--backend", "exact"),
    "flat": ("--backend", "faiss", "--spec", "Flat"),
    "ivf": ("--backend", "faiss", "--spec", "IVF16,SQ8"),
    "hnsw": ("--backend", "hnsw", "--set", "ef_construction=100"),
}


@pytest.fixture
def vectors(llara: Llara, tiny_model: Path, tmp_path: Path) -> np.ndarray:
    """Embeddings called ``e``, which were made elsewhere."""
    matrix = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    np.save(tmp_path / "e.npy", matrix)
    (tmp_path / "e.npy.ids.txt").write_text("".join(f"d{n}\n" for n in range(COUNT)))
    outcome = llara("encode", "--from", tmp_path / "e.npy", "--model", tiny_model, "--name", "e")
    assert outcome.code == 0, outcome.err
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_build_leaves_no_index(llara: Llara, vectors: np.ndarray, tmp_path: Path, backend: str) -> None:
    whole, folder, draw = tmp_path / "ws/indexes/whole", tmp_path / "ws/indexes/i", random.Random(5)
    command = ("index", "e", *BACKENDS[backend])
    started = time.monotonic()
    start(*command, "--name", "whole", "-w", tmp_path / "ws").communicate()
    seconds = time.monotonic() - started
    for _ in range(KILLS):
        process = start(*command, "--name", "i", "-w", tmp_path / "ws")
        time.sleep(seconds * draw.uniform(0.6, 1.0))  # libraries are loaded by then
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (folder / "manifest.json").exists():
            assert llara("search", "x", "--index", "i").code == 2
    assert llara(*command, "--name", "i").code == 0
    mine, theirs = ({k: v for k, v in tree(path).items() if k.startswith("backend/")} for path in (folder, whole))
    assert mine == theirs
    assert not list(folder.parent.glob(".i.*"))
    assert llara("status", "--verify").code == 0


@pytest.mark.parametrize("change", ["append", "remove"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_change_leaves_the_old_index_or_the_new_one(
    llara: Llara, vectors: np.ndarray, tiny_model: Path, tmp_path: Path, backend: str, change: str
) -> None:
    folder, whole, draw = tmp_path / "ws/indexes/i", tmp_path / "ws/indexes/whole", random.Random(7)
    for name in ("i", "whole"):
        assert llara("index", "e", *BACKENDS[backend], "--name", name).code == 0
    gone = tmp_path / "gone"
    gone.write_text("".join(f"d{n}\n" for n in range(0, COUNT, 3)))
    command: tuple[object, ...] = ("index", "--remove", gone)
    count, changed = COUNT, len(gone.read_text().split())
    left = count - changed
    if change == "append":
        np.save(tmp_path / "more.npy", -vectors)
        (tmp_path / "more.npy.ids.txt").write_text("".join(f"m{n}\n" for n in range(COUNT)))
        assert llara("encode", "--from", tmp_path / "more.npy", "--model", tiny_model, "--name", "m").code == 0
        command, left = ("index", "m", "--append"), 2 * COUNT
    old, started = tree(folder), time.monotonic()
    start(*command, "--name", "whole", "-w", tmp_path / "ws").communicate()
    seconds = time.monotonic() - started
    for _ in range(KILLS):
        process = start(*command, "--name", "i", "-w", tmp_path / "ws")
        time.sleep(seconds * draw.uniform(0.6, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert "i" in [row["name"] for row in llara("status", "--json").json["artifacts"]]
        assert llara("search", "x", "--index", "i").code == 0
        if json.loads((folder / "manifest.json").read_text())["counts"]["count"] == COUNT:
            assert tree(folder) == old
    assert llara(*command, "--name", "i").code == 0
    assert json.loads((folder / "manifest.json").read_text())["counts"]["count"] == left
    mine, theirs = ({k: v for k, v in tree(path).items() if k.startswith("backend/")} for path in (folder, whole))
    assert mine == theirs
    assert llara("status", "--verify").code == 0
    assert {path.name for path in folder.parent.iterdir()} == {"i", "whole"}
