"""``evaluate``: one retriever on the data sets of a benchmark, each evaluated once and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llara_cli.core.errors import UserError
from llara_cli.core.names import input_stem
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.data.runs import Qrels, RankedQueries, Run, read_qrels, read_ranked_queries, read_run, save_run
from llara_cli.evaluation.benchmarks import BENCHMARKS, Task, own_task
from llara_cli.evaluation.config import EvaluateConfig
from llara_cli.evaluation.datasets import Consent, DatasetFinder, Found
from llara_cli.evaluation.metric_names import cutoff, parse_metrics
from llara_cli.evaluation.metrics import (
    DEFAULT_METRICS,
    Evaluation,
    PerQuery,
    averaged,
    check_judgments,
    evaluate,
    score_queries,
)
from llara_cli.evaluation.results import Identity, Result, Results
from llara_cli.evaluation.summary import summarize
from llara_cli.pipelines.retrievers import Bm25Retriever, DenseRetriever, Retriever, RunRetriever, check_is_one
from llara_cli.pipelines.select import chosen_encoder, model_to_use

GROUP_SECONDS = 30
"""Seconds to wait for another process that writes the results of a group: far more than that takes."""
WINDOW = 256
"""Queries whose hits are in memory and scored together."""


class Scoring:
    """Scores the ranked queries that pass through, a window at a time."""

    def __init__(self, qrels: Qrels, metrics: Sequence[str], window: int = WINDOW) -> None:
        self._qrels = qrels
        self._size = window
        self._metrics = metrics
        self._values: PerQuery = {}
        self._window: Run = {}

    def watch(self, ranked: RankedQueries) -> Iterator[tuple[str, Sequence[tuple[str, float]]]]:
        """Pass the ranked queries on, scoring them on the way."""
        for query, hits in ranked:
            yield query, hits
            self._window[query] = dict(hits)
            if len(self._window) >= self._size:
                self._score()

    def finish(self) -> Evaluation:
        """The metrics, once every query has passed; a judged query without hits counts 0."""
        self._score()
        silent = {query: grades for query, grades in self._qrels.items() if query not in self._values}
        values = self._values | score_queries(silent, {}, self._metrics)
        return averaged({query: values[query] for query in self._qrels})

    def _score(self) -> None:
        qrels = {query: self._qrels[query] for query in self._window if query in self._qrels}
        self._values |= score_queries(qrels, self._window, self._metrics)
        self._window = {}


@dataclass(frozen=True)
class Evaluating:
    """One run of ``evaluate``."""

    workspace: Workspace
    benchmark: str
    retriever: Retriever
    config: EvaluateConfig
    restart: bool = False

    def run(self, found: Found) -> dict[str, Any]:
        """Evaluate each data set without an up-to-date result; return the command's result."""
        check_is_one(self.retriever, [data for _, data in found])
        for task, data in found:
            with self.workspace.reporter.status(f"reading the queries of {data.name}"):
                _ = data.queries
            self._check(task, data)
        self.workspace.create()
        results = Results(self.workspace, self.benchmark, self.retriever.name)
        results.check()
        evaluations = {task: self._evaluate(results, task, data) for task, data in found}
        result = summarize(self.benchmark, self.retriever.name, evaluations)
        for name, figures in result["datasets"].items():
            if "forums" in figures:
                with self.workspace.lock(results.place(name), wait=GROUP_SECONDS):
                    results.save_group(name, figures)
        return result

    def _check(self, task: Task, data: EvalDataset) -> None:
        """Raise ``UserError`` for a bad file, or a metric that does not suit it, before any model is loaded."""
        check_judgments(data.qrels, self.config.metrics or task.metrics)
        data.warn_of_missing_queries(self.workspace.reporter.warn)

    def _evaluate(self, results: Results, task: Task, data: EvalDataset) -> Evaluation:
        """Evaluate on a data set, unless another process evaluates the same model on it."""
        with self.workspace.lock(results.place(data.name)):
            return self._evaluate_alone(results, task, data)

    def _evaluate_alone(self, results: Results, task: Task, data: EvalDataset) -> Evaluation:
        metrics = self.config.metrics or task.metrics
        with self.workspace.reporter.status(f"checking {self.retriever.name} and {data.name}"):
            identity, made = self._identity(task, data), results.load(data.name)
        why = "`restart=True`" if self.restart else made.differs(identity) if made else ""
        if made is None or why:
            if made is not None:
                self.workspace.reporter.note(f"{data.name}: evaluated again ({why})")
            return self._measure(results, identity, data, metrics)
        missing = [name for name in metrics if name not in made.metrics]
        if not missing:
            self.workspace.reporter.note(f"nothing to do: {made.path} has the results of {data.name} already")
            return made.narrowed(metrics)
        return self._add(results, identity, made, data, metrics)

    def _identity(self, task: Task, data: EvalDataset) -> Identity:
        drops = self.config.drop_identical_ids or task.holds_its_queries
        settings = {"top_k": self.config.top_k, "drop_identical_ids": drops, **self.retriever.settings()}
        fingerprints = {"model": self.retriever.fingerprint(data), **data.fingerprints}
        return {"dataset": data.name, "split": data.split, "settings": settings, "fingerprints": fingerprints}

    def _measure(self, results: Results, identity: Identity, data: EvalDataset, metrics: Sequence[str]) -> Evaluation:
        """Search, write the run, and score it on the way."""
        started = time.monotonic()
        self._warn_of_depth(metrics)
        settings = identity["settings"]
        scoring = Scoring(data.qrels, metrics)
        ranked = self.retriever.ranked_queries(data, settings["top_k"], settings["drop_identical_ids"])
        path = results.path(data.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = save_run(path.parent, path.stem, scoring.watch(ranked), self.retriever.name)
        evaluation = scoring.finish()
        seconds = {"seconds": round(time.monotonic() - started, 3)}
        results.save(identity, evaluation, run, seconds)
        return evaluation

    def _add(
        self, results: Results, identity: Identity, made: Result, data: EvalDataset, metrics: Sequence[str]
    ) -> Evaluation:
        """Compute further metrics of an existing run; search again if it is missing."""
        every = list(dict.fromkeys((*made.metrics, *metrics)))
        if (run := made.run) is None:
            self.workspace.reporter.note(f"{data.name}: the run beside {made.path} is gone or changed: evaluated again")
            return self._measure(results, identity, data, every)
        self._warn_of_depth(metrics)
        scoring = Scoring(data.qrels, every)
        for _ in scoring.watch(read_ranked_queries(run)):
            pass
        saved = results.save(identity, scoring.finish(), run, {"seconds": made.fields.get("seconds")})
        self.workspace.reporter.note(f"{data.name}: computed from {run}")
        return saved.narrowed(metrics)

    def _warn_of_depth(self, metrics: Sequence[str]) -> None:
        deep = [name for name in metrics if (cutoff(name) or 0) > self.config.top_k]
        if deep:
            self.workspace.reporter.warn(f"`top_k={self.config.top_k}` gives too few hits for {', '.join(deep)}")


def evaluate_benchmark(
    workspace: Workspace,
    benchmark: str,
    config: EvaluateConfig,
    *,
    run: Path | None = None,
    name: str | None = None,
    restart: bool = False,
    consent: Consent | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Evaluate a model, BM25 or a run on a benchmark, or on one folder in BEIR layout.

    Args:
        run: a run to evaluate instead of a model, or a folder with a run per data set.
        name: name of the run in results.
        consent: called before anything is downloaded; None: nothing is downloaded.

    Returns:
        The result, and the split of each data set. Raises ``UserError`` for the caller's mistakes.
    """
    if config.metrics is not None:
        config = replace(config, metrics=parse_metrics(",".join(config.metrics)))
    if benchmark not in BENCHMARKS and not Path(benchmark).is_dir():
        known = ", ".join(BENCHMARKS)
        raise UserError(f"no benchmark or folder {benchmark!r}: known benchmarks are {known}")
    retriever = choose_retriever(workspace, config, run, name)
    retriever.check()  # before anything is downloaded
    called, datasets = _datasets(workspace, benchmark, config, consent or (lambda question: False))
    result = Evaluating(workspace, called, retriever, config, restart).run(datasets)
    return result, {task.group: data.split for task, data in datasets}


def _datasets(workspace: Workspace, benchmark: str, config: EvaluateConfig, consent: Consent) -> tuple[str, Found]:
    """The benchmark's name, its tasks and their data sets."""
    if benchmark in BENCHMARKS:
        finder = DatasetFinder(workspace, config.data_root, config.split, consent)
        return benchmark, finder.find(BENCHMARKS[benchmark], ",".join(config.datasets))
    data = EvalDataset(BeirFolder(Path(benchmark)), config.split or "test")
    return data.name, [(own_task(data.name, data.split), data)]


def choose_retriever(
    workspace: Workspace, config: EvaluateConfig, run: Path | None = None, name: str | None = None
) -> Retriever:
    """Choose a run, BM25, or a model as the retriever."""
    if (run is not None or config.model == "bm25") and (config.max_length or config.query_length or config.dim):
        workspace.reporter.note("`max_length`, `query_length` and `dim` are for a model: BM25 reads whole texts")
    if run is not None:
        return RunRetriever(run, name or "")
    if name is not None:
        raise UserError("`name` is for `run`: a model keeps its own name")
    if config.model == "bm25":
        return Bm25Retriever(workspace.reporter)
    source = model_to_use(workspace, config.model, config.trust_remote_code)
    encoder = chosen_encoder(workspace, config.encoder, source)
    return DenseRetriever(workspace, source, replace(config, encoder=encoder))


def evaluate_run(
    run: Path, qrels: Path, metrics: Sequence[str] | None = None, name: str | None = None
) -> dict[str, Any]:
    """``evaluate --run RUN --qrels QRELS``; benchmark and data set are the run file's stem, the model is ``name``.

    Without a ``name`` the model gets the stem as its name, too.
    """
    metrics = parse_metrics(",".join(metrics)) if metrics is not None else DEFAULT_METRICS
    evaluation = evaluate(read_qrels(qrels), read_run(run), metrics)
    stem = input_stem(run)
    found = {**evaluation.means, "queries": evaluation.queries}
    mean = {metrics[0]: evaluation.means[metrics[0]], "datasets": 1}
    return {"benchmark": stem, "model": name or stem, "datasets": {stem: found}, "mean": mean}
