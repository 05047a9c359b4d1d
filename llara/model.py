"""A retriever in memory: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from llara.arguments import path_of, texts_of
from llara_cli.core.config import Attention, Dtype, checked_count, refuse_unknown, shown
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Role, Vectors
from llara_cli.core.reporter import Progress, Reporter
from llara_cli.core.workspace import Workspace as Store

if TYPE_CHECKING:
    from llara_cli.model.backends import EncoderBackend
    from llara_cli.model.source import ModelSource


class Model:
    """A retriever, loaded: ``Model.load`` makes one.

    >>> import llara
    >>> model = llara.Model.load("tiny-model", query_length=64)
    >>> vectors = model.encode(["Bees dance.", "Cats sleep."], role="passage")
    >>> vectors.shape == (2, model.dim)
    True
    >>> scores = model.similarity(["why do bees dance"], ["Bees dance.", "Cats sleep."])
    >>> scores.shape
    (1, 2)

    Attributes:
        name: short name, used in the names of artifacts.
        dim: width of a vector.
    """

    def __init__(self, source: ModelSource, encoder: EncoderBackend, reporter: Reporter) -> None:
        self.source = source
        self.name: str = source.name
        self._encoder = encoder
        self._reporter = reporter

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        workspace: str | Path | None = None,
        encoder: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        query_length: int | None = None,
        passage_length: int | None = None,
        batch_tokens: int | None = None,
        attention: Attention = "auto",
        trust_remote_code: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Model:
        """Load a model.

        Args:
            model: a folder, a hub id, a ``.gguf`` file, or the name of a model of ``workspace``.
            encoder: backend that runs it. Default: sentence-transformers for its models, else torch.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
            dtype: compute dtype; ``auto``: bf16 on a GPU that supports it, else fp32.
            query_length: total tokens of a query, prompt included. Default: 512, at most the model's positions.
            passage_length: the same of a passage.
            batch_tokens: tokens of one forward, padding included.
            attention: how attention is computed.
            trust_remote_code: allow the checkpoint's own Python code to run.
            progress: called with a ``Progress`` whenever texts are done.

        Raises:
            UserError: for a model that does not exist or cannot be run, and for lengths that it does not support.
        """
        from llara_cli.core import registry
        from llara_cli.model.backends import EncoderOptions
        from llara_cli.model.source import resolve

        if not isinstance(model, str | Path):
            raise UserError(f"`model` must be a string or a path, not {shown(model)}")
        refuse_unknown("dtype", dtype, get_args(Dtype))
        refuse_unknown("attention", attention, get_args(Attention))
        reporter = Reporter(progress)
        store = Store(path_of("workspace" if workspace is None else workspace, "workspace", "a directory"), reporter)
        source = resolve(str(model), store, remote_code=trust_remote_code)
        backend: type[EncoderBackend] = registry.load("encoder", encoder or source.usual_encoder)
        options = EncoderOptions(
            dtype=dtype,
            device=device,
            query_length=checked_count("query_length", query_length),
            passage_length=checked_count("passage_length", passage_length),
            batch_tokens=checked_count("batch_tokens", batch_tokens),
            attention=attention,
            note=reporter.warn_once,
        )
        with reporter.status(f"loading {source.name}"):
            return cls(source, backend.load(source, options), reporter)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._encoder.dim

    def encode(self, texts: str | Sequence[str], *, role: Role = "passage", dim: int | None = None) -> Vectors:
        """Encode texts.

        Args:
            texts: one text or several; an empty text is the bare prompt, a long one is cut (the prompt never).
            role: whether they are passages or queries.
            dim: keep the first dimensions only (Matryoshka) and normalize again. Default: all.

        Returns:
            float32 (texts, dim), L2-normalized; (dim,) for one text.

        Raises:
            UserError: for an unknown role, a ``dim`` above the model's, and texts that are not strings of Unicode.

        >>> import llara
        >>> model = llara.Model.load("tiny-model")
        >>> model.encode("Bees dance.", dim=8).shape
        (8,)
        """
        refuse_unknown("role", role, get_args(Role))
        dim = checked_count("dim", dim)
        if dim is not None and dim > self.dim:
            raise UserError(f"`dim={dim}` is above the model's width of {self.dim}")
        several = texts_of(texts, "texts")
        with self._reporter.bar("encoding", len(several), unit="texts") as bar:
            vectors = self._encoder.encode(several, role, bar.advance).vectors
        if dim is not None:
            from llara_cli.retrieval.vector_store import cut

            vectors = np.ascontiguousarray(cut(vectors, dim))
        return vectors[0] if isinstance(texts, str) else vectors

    def similarity(self, queries: Sequence[str] | Vectors, passages: Sequence[str] | Vectors) -> Vectors:
        """Cosine similarities of queries and passages, each given as texts or as vectors of ``encode``.

        Returns:
            float32 (queries, passages).

        Raises:
            UserError: for queries and passages of different widths, and for NaN or infinity.

        >>> import llara
        >>> model = llara.Model.load("tiny-model")
        >>> passages = model.encode(["Bees dance.", "Cats sleep."])
        >>> model.similarity(["why do bees dance"], passages).shape
        (1, 2)
        """
        left, right = self._vectors(queries, "query"), self._vectors(passages, "passage")
        if left.shape[1] != right.shape[1]:
            raise UserError(f"queries of width {left.shape[1]} and passages of width {right.shape[1]}")
        return left @ right.T

    def _vectors(self, given: Sequence[str] | Vectors, role: Role) -> Vectors:
        if not isinstance(given, np.ndarray):
            return self.encode(texts_of(given, "texts"), role=role)
        vectors = np.atleast_2d(given)
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
            raise UserError(
                f"vectors must be finite floats of shape (n, dim), not {given.dtype} of shape {given.shape}"
            )
        return vectors

    def __repr__(self) -> str:
        return f"Model({self.name!r}, dim={self.dim})"
