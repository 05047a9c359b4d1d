"""Building an index streams: over the finished index's own size it takes little anonymous memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROWS, DIM, MOST = 200_000, 192, 256 * 2**20
WIDE_ROWS, WIDE = 40_000, 1024
ROTATED_ROWS, ROTATED = 20_000, 768
CODE = """
import json, re, sys, threading
from pathlib import Path
import numpy as np
from llara_cli.core import registry
from llara_cli.core.protocols import IndexOptions

path, folder, backend, spec, parameters = sys.argv[1:]
matrix = np.load(path, mmap_mode="r")

class Blocks:
    count, dim = matrix.shape
    def __iter__(self):
        rows = 2**25 // (4 * self.dim)
        for start in range(0, self.count, rows):
            yield np.array(matrix[start : start + rows])

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

kind = registry.load("index", backend)
if backend == "faiss":  # what is learnt in fewer steps takes no less memory
    from llara_backends import index_faiss_training as training
    learn, train = training.learn_rotation, training.train_stage
    def learn_briefly(rotation, sample):
        rotation.niter = rotation.niter_pq_0 = rotation.niter_pq = 1
        learn(rotation, sample)
    def train_briefly(index, sample):
        codes = getattr(training.faiss.downcast_index(index), "pq", None)
        if codes is not None:
            codes.cp.niter = 1
        train(index, sample)
    training.learn_rotation, training.train_stage = learn_briefly, train_briefly
options = IndexOptions(spec or None, json.loads(parameters))
class Few(Blocks):
    count = 10_000
    def __iter__(self):
        yield np.array(matrix[: self.count])
kind.build(Few(), options)  # what libraries bring up once
before, most, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
kind.build(Blocks(), options).save(Path(folder))
done.set()
thread.join()
print(most[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("backend", "spec", "parameters"),
    [
        ("exact", "", {}),
        ("faiss", "Flat", {}),
        ("faiss", "IVF64,Flat", {}),
        ("faiss", "HNSW4,Flat", {"ef_construction": 4}),
        ("hnsw", "", {"M": 4, "ef_construction": 4}),
    ],
    ids=lambda value: str(value) or "-",
)
def test_building_takes_the_index_and_little_more(
    tmp_path: Path, backend: str, spec: str, parameters: dict[str, int]
) -> None:
    pytest.importorskip({"exact": "torch", "faiss": "faiss", "hnsw": "hnswlib"}[backend])
    size, taken = built(tmp_path, (ROWS, DIM), backend, spec, parameters)
    assert size > ROWS * DIM * 4
    held = 0 if backend == "exact" else size  # exact searches the file
    assert taken <= held + MOST / 2  # the data are small here: half of what is allowed at any size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_wide_vectors_are_trained_on_in_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    size, taken = built(tmp_path, (WIDE_ROWS, WIDE), "faiss", "IVF64,PQ2", {})
    assert size < WIDE_ROWS * WIDE
    assert taken <= size + MOST


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("spec", ["OPQ48,IVF16,PQ48x4fs", "OPQ48_192,IVF16,PQ48x4", "IVF16,PQ48"])
def test_rotations_and_codes_are_learnt_in_little_memory(tmp_path: Path, spec: str) -> None:
    pytest.importorskip("faiss")
    size, taken = built(tmp_path, (ROTATED_ROWS, ROTATED), "faiss", spec, {})
    assert size < ROTATED_ROWS * ROTATED
    assert taken <= size + MOST


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lists_are_learnt_from_more_vectors_than_codes(tmp_path: Path) -> None:
    """So many lists that the sample for them is far above what codes may be learnt from."""
    pytest.importorskip("faiss")
    size, taken = built(tmp_path, (100_000, 768), "faiss", "IVF1100,SQ8", {})
    assert taken <= size + MOST


def built(folder: Path, shape: tuple[int, int], backend: str, spec: str, parameters: dict[str, int]) -> tuple[int, int]:
    """Bytes of an index built in a process of its own, and of the anonymous memory that it took."""
    vectors = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.save(folder / "vectors.npy", vectors)
    (folder / "index").mkdir()
    arguments = (folder / "vectors.npy", folder / "index", backend, spec, json.dumps(parameters))
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return sum(file.stat().st_size for file in (folder / "index").iterdir()), int(done.stdout)
