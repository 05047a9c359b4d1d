"""Trains an index of FAISS (centroids, codes, rotations) on a sample, in memory that does not grow with the corpus.

FAISS copies what it trains on: not for lists, twice for codes, six times for OPQ. So each part gets as many vectors as
fit with their copies.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import Any

import faiss
import numpy as np

from llara_backends.index_vectors import checked_blocks
from llara_cli.core.protocols import VectorBlocks, Vectors

_SEED = 20240612
_MOST, _BYTES = 65_536, 96 * 2**20
"""Most vectors to train on, and most bytes that they may take."""
_ROTATION_BYTES = 32 * 2**20
"""Most bytes if OPQ learns a rotation."""
_LEAST, _PER_LIST = 10_000, 64
"""Least vectors to train on, and least per list of an IVF index: FAISS asks for 39 to 256 per centroid."""
_ROWS_PER_TABLE = 256
"""Vectors whose distances to all centroids of a product quantizer are held at once.

FAISS's default of 262,144 takes 500 MB for vectors of width 768 with PQ48, and is not faster.
"""
_ROWS_PER_TRANSFORM = 4096

_globals: Any = faiss.cvar
_globals.product_quantizer_compute_codes_bs = _ROWS_PER_TABLE


def train(index: Any, vectors: VectorBlocks, size: int) -> None:
    """Train an index on ``size`` vectors of the stream, if it needs training."""
    if not index.is_trained:
        train_stage(index, _sample(vectors, size))


def sample_size(index: Any, count: int) -> int:
    """How many of ``count`` vectors to train an index on. It must be on the CPU: on a GPU, FAISS hides its lists."""
    affordable = _affordable(int(index.d), _BYTES // 2 if isinstance(index, faiss.IndexPreTransform) else _BYTES)
    return min(count, max(affordable, _PER_LIST * (lists(index) or 0)))


def lists(index: Any) -> int | None:
    """Lists of the IVF index that ``index`` is or wraps."""
    ivf = faiss.try_extract_index_ivf(index)
    return None if ivf is None else int(ivf.nlist)


def train_stage(index: Any, sample: Vectors) -> None:
    """Train an index, part by part, on all of ``sample`` (rows, dim) or on as much as fits for a part."""
    index = faiss.downcast_index(index)
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False  # takes a second and more per part of a code; not used by our searches
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector, whatever FAISS's annotations say
        for place in range(chain.size()):
            sample = _transformed(faiss.downcast_VectorTransform(chain.at(place)), sample)
        train_stage(index.index, sample)
        index.is_trained = True
    elif isinstance(index, faiss.IndexRefine):
        train_stage(index.base_index, sample)
        train_stage(index.refine_index, sample)
        index.is_trained = True
    elif isinstance(index, faiss.IndexIVF):
        ivf: Any = index  # FAISS's annotations lack the method
        ivf.train_q1(len(sample), faiss.swig_ptr(sample), False, index.metric_type)
        index.train(_thinned(sample))  # the codes: the lists are trained already
    elif not index.is_trained:
        index.train(sample)


def _affordable(dim: int, size: int = _BYTES) -> int:
    """Vectors that fit ``size`` bytes; some thousands at least."""
    return max(_LEAST, min(_MOST, size // (4 * dim)))


def _sample(vectors: VectorBlocks, size: int) -> Vectors:
    """``size`` vectors drawn uniformly, in the stream's order; the same every time."""
    drawn = np.random.default_rng(_SEED).choice(vectors.count, size, replace=False, shuffle=False)
    drawn.sort()
    sample, row, filled = _room(size, vectors.dim), 0, 0
    for block in checked_blocks(vectors):
        here = drawn[filled : np.searchsorted(drawn, row + len(block))] - row
        sample[filled : filled + len(here)] = block[here]
        row, filled = row + len(block), filled + len(here)
    return sample


def _thinned(sample: Vectors) -> Vectors:
    """As many of the vectors as codes are trained on, evenly spaced."""
    size = _affordable(sample.shape[1])
    return sample if len(sample) <= size else sample[np.arange(size) * len(sample) // size]


def _transformed(transform: Any, sample: Vectors) -> Vectors:
    """(rows, width): train a transform, and apply it to the sample."""
    if not transform.is_trained:
        (learn_rotation if isinstance(transform, faiss.OPQMatrix) else _learn)(transform, sample)
    made = _room(len(sample), transform.d_out)
    for start in range(0, len(sample), _ROWS_PER_TRANSFORM):
        part = slice(start, start + _ROWS_PER_TRANSFORM)
        made[part] = transform.apply(sample[part])
    return made


def _learn(transform: Any, sample: Vectors) -> None:
    transform.train(_thinned(sample))


def learn_rotation(rotation: Any, sample: Vectors) -> None:
    """Train OPQ on few vectors, without FAISS's warnings that they are few in each of its thousand clusterings."""
    rotation.max_train_points = min(_LEAST, _ROTATION_BYTES // (4 * int(rotation.d_in)))
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    rotation.train(sample)
    rotation.pq = None


def _room(rows: int, dim: int) -> Vectors:
    """An empty matrix, in an unnamed file if it is large: many lists need more vectors than fit in memory."""
    if 4 * rows * dim <= _BYTES:
        return np.empty((rows, dim), dtype=np.float32)
    with TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, dim))
