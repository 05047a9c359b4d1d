"""Every setting of ``encode``, ``index``, ``search`` and ``mine``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from llara_cli.core.config import (
    MODEL_HELP,
    Attention,
    Dtype,
    Layout,
    Parameters,
    Role,
    Setting,
    check_values,
    refuse_bad_seed,
)
from llara_cli.core.errors import UserError

NEWEST_MODEL = "the newest of the workspace"
DEFAULT_TOKENS = "512, at most the model's positions"
DEFAULT_ENCODER = "sentence-transformers for its models, else torch"
DEFAULT_BATCH = "2,048 on a CPU, 65,536 on a GPU"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Settings of ``encode``.

    >>> from llara import EncodeConfig
    >>> EncodeConfig(role="query", max_length=64).store
    'fp32'
    """

    model: Annotated[str | None, Setting(MODEL_HELP, panel="Model", complete="models", default=NEWEST_MODEL)] = None
    encoder: Annotated[
        str | None, Setting("Encoder backend.", panel="Model", complete="encoder backends", default=DEFAULT_ENCODER)
    ] = None
    trust_remote_code: Annotated[bool, Setting("Allow the checkpoint's own Python code to run.", panel="Model")] = False
    role: Annotated[
        Role | None,
        Setting("Role of the texts.", flag="--as", panel="Texts", default="passage, or what `vectors` records"),
    ] = None
    max_length: Annotated[
        int | None,
        Setting("Tokens per text, including the prompt.", panel="Texts", default=DEFAULT_TOKENS, positive=True),
    ] = None
    dim: Annotated[
        int | None,
        Setting("Keep the first dimensions only (Matryoshka).", panel="Vectors", default="all", positive=True),
    ] = None
    store: Annotated[Literal["fp32", "fp16"], Setting("Storage dtype of the vectors.", panel="Vectors")] = "fp32"
    shard_size: Annotated[
        int, Setting("Texts per shard; an interruption loses at most one shard.", panel="Vectors", positive=True)
    ] = 4096
    dtype: Annotated[Dtype, Setting("Compute dtype.", panel="Speed and memory")] = "auto"
    batch_tokens: Annotated[
        int | None,
        Setting(
            "Tokens per forward, including padding.", panel="Speed and memory", default=DEFAULT_BATCH, positive=True
        ),
    ] = None
    layout: Annotated[Layout, Setting("How texts are batched.", panel="Speed and memory")] = "auto"
    attention: Annotated[Attention, Setting("Attention implementation.", panel="Speed and memory")] = "auto"
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

    backend: Annotated[str, Setting("Index backend.", panel="Index", complete="index backends")] = "exact"
    spec: Annotated[
        str | None, Setting('FAISS factory string: "Flat", "IVF4096,PQ64", "HNSW32" ...', panel="Index")
    ] = None
    parameters: Annotated[
        Parameters,
        Setting("Parameter of the backend, as M=32; repeatable.", flag="--set", panel="Index", metavar="KEY=VALUE"),
    ] = field(default_factory=dict)
    device: Annotated[str, Setting("Device that builds the index.", panel="Index", choices=("cpu", "cuda"))] = "cpu"

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of ``search``.

    >>> from llara import SearchConfig
    >>> SearchConfig(query_length=64).top_k
    10
    """

    top_k: Annotated[int, Setting("Hits per query.", short="-k", panel="Search", positive=True)] = 10
    query_length: Annotated[
        int | None,
        Setting("Tokens per query, including the prompt.", panel="Search", default=DEFAULT_TOKENS, positive=True),
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
    device: Annotated[str, Setting("Device that searches the index.", panel="Search", choices=("cpu", "cuda"))] = "cpu"
    model: Annotated[
        str | None,
        Setting(
            "Fail unless the index was made with this model.",
            panel="Model",
            complete="models",
            default="the one recorded in the index",
        ),
    ] = None
    trust_remote_code: Annotated[bool, Setting("Allow the checkpoint's own Python code to run.", panel="Model")] = False

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
            f"Model that encodes `corpus`, or bm25. {MODEL_HELP}",
            panel="Model",
            complete="models",
            default=NEWEST_MODEL,
            recorded="",
        ),
    ] = None
    encoder: Annotated[
        str | None,
        Setting("Encoder backend.", panel="Model", complete="encoder backends", default=DEFAULT_ENCODER, recorded=""),
    ] = None
    trust_remote_code: Annotated[
        bool, Setting("Allow the checkpoint's own Python code to run.", panel="Model", recorded="")
    ] = False
    max_length: Annotated[
        int | None,
        Setting(
            "Tokens per passage of `corpus`, including the prompt.",
            panel="Texts",
            default=DEFAULT_TOKENS,
            positive=True,
            recorded="",
        ),
    ] = None
    query_length: Annotated[
        int | None,
        Setting("Tokens per query, including the prompt.", panel="Texts", default=DEFAULT_TOKENS, positive=True),
    ] = None
    depth: Annotated[int, Setting("Best hits per query to draw from.", panel="Negatives", positive=True)] = 200
    per_query: Annotated[int, Setting("Negatives per query.", panel="Negatives", positive=True)] = 15
    skip_top: Annotated[int, Setting("Skip this many of the best hits, positives not counted.", panel="Negatives")] = 0
    margin: Annotated[
        float | None,
        Setting(
            "Take only passages that score at least this much below the best positive.",
            panel="Negatives",
            default="no limit",
        ),
    ] = None
    seed: Annotated[int, Setting("Random seed.", panel="Negatives")] = 42
    dtype: Annotated[Dtype, Setting("Compute dtype.", panel="Speed and memory", recorded="")] = "auto"

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
