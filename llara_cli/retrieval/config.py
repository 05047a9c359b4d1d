"""Every setting of ``encode``, ``index``, ``search`` and ``mine``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from llara_cli.core.config import Attention, Dtype, Layout, Setting, check_values, refuse_bad_seed
from llara_cli.core.errors import UserError

NEWEST_MODEL = "the newest of the workspace"
DEFAULT_TOKENS = "512, at most the model's positions"
MODEL_HELP = "A workspace name, a folder, a hub id or a .gguf file."
DEFAULT_ENCODER = "sentence-transformers for its models, else torch"
DEFAULT_BATCH = "2,048 on a CPU, 65,536 on a GPU"
Parameters = Mapping[str, int | float | str]
"""Parameters of an index library, by the names that the backend gives them."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Settings of ``encode``.

    >>> from llara import EncodeConfig
    >>> EncodeConfig(role="query", max_length=64).store
    'fp32'
    """

    model: Annotated[str | None, Setting(MODEL_HELP, panel="Model", complete="models", default=NEWEST_MODEL)] = None
    encoder: Annotated[
        str | None, Setting("What runs the model.", panel="Model", complete="encoder backends", default=DEFAULT_ENCODER)
    ] = None
    trust_remote_code: Annotated[bool, Setting("Let a checkpoint run Python code of its own.", panel="Model")] = False
    role: Annotated[
        Literal["passage", "query"] | None,
        Setting("What the texts are.", flag="--as", panel="Texts", default="passage, or what `vectors` records"),
    ] = None
    max_length: Annotated[
        int | None,
        Setting("Total tokens of a text, prompt included.", panel="Texts", default=DEFAULT_TOKENS, positive=True),
    ] = None
    dim: Annotated[
        int | None,
        Setting("Keep the first dimensions only (Matryoshka).", panel="Vectors", default="all", positive=True),
    ] = None
    store: Annotated[Literal["fp32", "fp16"], Setting("What vectors are stored as.", panel="Vectors")] = "fp32"
    shard_size: Annotated[
        int, Setting("Texts of a shard: what an interruption costs at most.", panel="Vectors", positive=True)
    ] = 4096
    dtype: Annotated[Dtype, Setting("What is computed in.", panel="Speed and memory")] = "auto"
    batch_tokens: Annotated[
        int | None,
        Setting(
            "Tokens of one forward, padding included.", panel="Speed and memory", default=DEFAULT_BATCH, positive=True
        ),
    ] = None
    layout: Annotated[Layout, Setting("How texts share forwards.", panel="Speed and memory")] = "auto"
    attention: Annotated[Attention, Setting("How attention is computed.", panel="Speed and memory")] = "auto"
    compile: Annotated[bool, Setting("torch.compile the decoder's layers.", panel="Speed and memory")] = False

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Settings of ``index``.

    >>> from llara import IndexConfig
    >>> IndexConfig(backend="hnsw", parameters={"M": 32}).device
    'cpu'
    """

    backend: Annotated[str, Setting("Library that searches.", panel="Index", complete="index backends")] = "exact"
    spec: Annotated[
        str | None, Setting('FAISS factory string: "Flat", "IVF4096,PQ64", "HNSW32" ...', panel="Index")
    ] = None
    parameters: Annotated[
        Parameters,
        Setting("Parameter of the backend, as M=32; repeatable.", flag="--set", panel="Index", metavar="KEY=VALUE"),
    ] = field(default_factory=dict)
    device: Annotated[str, Setting("Where it is built.", panel="Index", choices=("cpu", "cuda"))] = "cpu"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of ``search``."""

    top_k: Annotated[int, Setting("Hits per query.", short="-k", panel="Search", positive=True)] = 10
    query_length: Annotated[
        int | None,
        Setting("Total tokens of a query, prompt included.", panel="Search", default=DEFAULT_TOKENS, positive=True),
    ] = None
    parameters: Annotated[
        Parameters,
        Setting(
            "Parameter of the index's backend, as ef=128; repeatable.",
            flag="--set",
            panel="Search",
            metavar="KEY=VALUE",
        ),
    ] = field(default_factory=dict)
    device: Annotated[str, Setting("Where the index is searched.", panel="Search", choices=("cpu", "cuda"))] = "cpu"
    model: Annotated[
        str | None,
        Setting(
            "Refuse an index of any other model.",
            panel="Model",
            complete="models",
            default="the one recorded in the index",
        ),
    ] = None
    trust_remote_code: Annotated[bool, Setting("Let a checkpoint run Python code of its own.", panel="Model")] = False

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Settings of ``mine``.

    >>> from llara import MineConfig
    >>> MineConfig(depth=100, skip_top=5).per_query
    15
    """

    model: Annotated[
        str | None,
        Setting(
            f"What encodes `corpus`; bm25: search by words. {MODEL_HELP}",
            panel="Model",
            complete="models",
            default=NEWEST_MODEL,
            recorded="",
        ),
    ] = None
    encoder: Annotated[
        str | None,
        Setting(
            "What runs the model.", panel="Model", complete="encoder backends", default=DEFAULT_ENCODER, recorded=""
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, Setting("Let a checkpoint run Python code of its own.", panel="Model", recorded="")
    ] = False
    max_length: Annotated[
        int | None,
        Setting(
            "Total tokens of a passage of `corpus`.",
            panel="Texts",
            default=DEFAULT_TOKENS,
            positive=True,
            recorded="",
        ),
    ] = None
    query_length: Annotated[
        int | None,
        Setting("Total tokens of a query, prompt included.", panel="Texts", default=DEFAULT_TOKENS, positive=True),
    ] = None
    depth: Annotated[int, Setting("Best hits of a query to draw from.", panel="Negatives", positive=True)] = 200
    per_query: Annotated[int, Setting("Negatives per query.", panel="Negatives", positive=True)] = 15
    skip_top: Annotated[
        int, Setting("Leave out this many of the best hits, positives not counted.", panel="Negatives")
    ] = 0
    margin: Annotated[
        float | None,
        Setting(
            "Take only what scores at least this far below the best positive.",
            panel="Negatives",
            default="whatever it scores",
        ),
    ] = None
    seed: Annotated[int, Setting("Seed of the draw.", panel="Negatives")] = 42
    dtype: Annotated[Dtype, Setting("What is computed in.", panel="Speed and memory", recorded="")] = "auto"

    def __post_init__(self) -> None:
        check_values(self)
        refuse_bad_seed(self.seed)
        if self.margin is not None and not math.isfinite(self.margin):
            raise UserError(f"`margin` must be a finite number, not {self.margin}")
        if self.skip_top < 0:
            raise UserError(f"`skip_top` must not be negative, not {self.skip_top}")
        if self.skip_top + self.per_query > self.depth:
            raise UserError(
                f"`depth={self.depth}` leaves no room for `per_query={self.per_query}` after `skip_top={self.skip_top}`"
            )
