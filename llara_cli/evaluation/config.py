"""Every setting of ``evaluate`` and ``compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llara_cli.core.config import MODEL_HELP, Attention, Dtype, Setting, check_values
from llara_cli.retrieval.config import DEFAULT_BATCH, DEFAULT_ENCODER, DEFAULT_TOKENS, NEWEST_MODEL


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of ``evaluate``.

    >>> from llara import EvaluateConfig
    >>> EvaluateConfig(datasets=("scifact", "nfcorpus"), metrics=("nDCG@10",)).top_k
    1000
    """

    datasets: Annotated[
        tuple[str, ...], Setting("Names, as scifact,nfcorpus; or all.", panel="Data", complete="datasets")
    ] = ("all",)
    data_root: Annotated[Path | None, Setting("Folder of data sets in BEIR layout, searched first.", panel="Data")] = (
        None
    )
    split: Annotated[str | None, Setting("Judgments to use.", panel="Data", default="test; MS MARCO: dev")] = None
    metrics: Annotated[
        tuple[str, ...] | None,
        Setting("Metrics of ir_measures, as nDCG@10,R@100.", panel="Data", default="those customary for each data set"),
    ] = None
    drop_identical_ids: Annotated[
        bool, Setting("Drop a hit with the query's own id (ArguAna, Quora: always).", panel="Data")
    ] = False
    model: Annotated[
        str | None,
        Setting(f"{MODEL_HELP} Or bm25.", panel="Model", complete="models", default=NEWEST_MODEL),
    ] = None
    encoder: Annotated[
        str | None, Setting("Encoder backend.", panel="Model", complete="encoder backends", default=DEFAULT_ENCODER)
    ] = None
    trust_remote_code: Annotated[bool, Setting("Allow the checkpoint's own Python code to run.", panel="Model")] = False
    max_length: Annotated[
        int | None,
        Setting("Tokens per passage, including the prompt.", panel="Search", default=DEFAULT_TOKENS, positive=True),
    ] = None
    query_length: Annotated[
        int | None,
        Setting("Tokens per query, including the prompt.", panel="Search", default=DEFAULT_TOKENS, positive=True),
    ] = None
    top_k: Annotated[int, Setting("Hits per query.", short="-k", panel="Search", positive=True)] = 1000
    index_backend: Annotated[str, Setting("Index backend.", panel="Search", complete="index backends")] = "exact"
    dim: Annotated[
        int | None,
        Setting("Keep the first dimensions only (Matryoshka).", panel="Search", default="all", positive=True),
    ] = None
    dtype: Annotated[Dtype, Setting("Compute dtype.", panel="Speed and memory")] = "auto"
    batch_tokens: Annotated[
        int | None,
        Setting(
            "Tokens per forward, including padding.", panel="Speed and memory", default=DEFAULT_BATCH, positive=True
        ),
    ] = None
    attention: Annotated[Attention, Setting("Attention implementation.", panel="Speed and memory")] = "auto"

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of ``compare``.

    >>> from llara import CompareConfig
    >>> CompareConfig(metric="nDCG@10").test
    't-test'
    """

    benchmark: Annotated[
        str | None,
        Setting(
            "Benchmark on which the models were evaluated.",
            panel="Data",
            complete="benchmarks",
            default="the one all have",
        ),
    ] = None
    metric: Annotated[
        str | None, Setting("A metric of the results.", panel="Data", default="each data set's main one")
    ] = None
    test: Annotated[Literal["t-test", "randomisation"], Setting("Paired significance test.", panel="Data")] = "t-test"

    def __post_init__(self) -> None:
        check_values(self)
