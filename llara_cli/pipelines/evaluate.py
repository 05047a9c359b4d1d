"""The stage ``evaluate``: one retriever on the data sets of a benchmark, each measured once and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llara_cli.core.config import refuse_nonpositive
from llara_cli.core.names import input_stem
from llara_cli.core.workspace import Workspace
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.data.runs import Answers, Qrels, Run, read_answers, read_qrels, read_run, save_run
from llara_cli.evaluation.benchmarks import Task
from llara_cli.evaluation.datasets import Found
from llara_cli.evaluation.metric_names import cutoff
from llara_cli.evaluation.metrics import Evaluation, PerQuery, averaged, check_judgments, evaluate, score_queries
from llara_cli.evaluation.results import Identity, Result, Results
from llara_cli.evaluation.summary import summarize
from llara_cli.pipelines.retrievers import Retriever, check_is_one

GROUP_SECONDS = 30
"""How long to wait for another process that writes the figures of a group: far more than that takes."""
WINDOW = 256
"""Queries whose hits are held and scored together."""


@dataclass(frozen=True)
class EvaluateConfig:
    """``llara evaluate``, whatever is measured; ``metrics`` None: those customary for each data set."""

    top_k: int = 1000
    metrics: tuple[str, ...] | None = None
    drop_identical_ids: bool = False
    restart: bool = False

    def check(self) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        refuse_nonpositive("--top-k", self.top_k)


class Scoring:
    """Scores the answers that pass through, a window of queries at a time."""

    def __init__(self, qrels: Qrels, metrics: Sequence[str], window: int = WINDOW) -> None:
        self._qrels = qrels
        self._size = window
        self._metrics = metrics
        self._values: PerQuery = {}
        self._window: Run = {}

    def watch(self, answers: Answers) -> Iterator[tuple[str, Sequence[tuple[str, float]]]]:
        """The answers themselves."""
        for query, hits in answers:
            yield query, hits
            self._window[query] = dict(hits)
            if len(self._window) >= self._size:
                self._score()

    def finish(self) -> Evaluation:
        """The figures, once every answer has passed; a judged query without an answer counts 0."""
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
    settings: EvaluateConfig

    def run(self, found: Found) -> dict[str, Any]:
        """Evaluate each data set that has no result yet that still holds; the command's result."""
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
        """Raise ``UserError`` for a bad file, or one that a metric is not for, before any model is loaded."""
        check_judgments(data.qrels, self.settings.metrics or task.metrics)
        data.warn_of_lost(self.workspace.reporter.warn)

    def _evaluate(self, results: Results, task: Task, data: EvalDataset) -> Evaluation:
        """The figures on a data set, while no other process measures the same model on it."""
        with self.workspace.lock(results.place(data.name)):
            return self._evaluate_alone(results, task, data)

    def _evaluate_alone(self, results: Results, task: Task, data: EvalDataset) -> Evaluation:
        metrics = self.settings.metrics or task.metrics
        with self.workspace.reporter.status(f"checking {self.retriever.name} and {data.name}"):
            identity, made = self._identity(task, data), results.load(data.name)
        why = "--restart" if self.settings.restart else made.differs(identity) if made else ""
        if made is None or why:
            if made is not None:
                self.workspace.reporter.note(f"{data.name}: evaluated again ({why})")
            return self._measure(results, identity, data, metrics)
        missing = [name for name in metrics if name not in made.metrics]
        if not missing:
            self.workspace.reporter.note(f"nothing to do: {made.path} has the figures of {data.name} already")
            return made.narrowed(metrics)
        return self._add(results, identity, made, data, metrics)

    def _identity(self, task: Task, data: EvalDataset) -> Identity:
        drops = self.settings.drop_identical_ids or task.holds_its_queries
        settings = {"top_k": self.settings.top_k, "drop_identical_ids": drops, **self.retriever.settings()}
        fingerprints = {"model": self.retriever.fingerprint(data), **data.fingerprints}
        return {"dataset": data.name, "split": data.split, "settings": settings, "fingerprints": fingerprints}

    def _measure(self, results: Results, identity: Identity, data: EvalDataset, metrics: Sequence[str]) -> Evaluation:
        """Search, write the run, score it on the way."""
        started = time.monotonic()
        self._warn_of_depth(metrics)
        settings = identity["settings"]
        scoring = Scoring(data.qrels, metrics)
        answers = self.retriever.answers(data, settings["top_k"], settings["drop_identical_ids"])
        path = results.path(data.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = save_run(path.parent, path.stem, scoring.watch(answers), self.retriever.name)
        evaluation = scoring.finish()
        seconds = {"seconds": round(time.monotonic() - started, 3)}
        results.save(identity, evaluation, run, seconds)
        return evaluation

    def _add(
        self, results: Results, identity: Identity, made: Result, data: EvalDataset, metrics: Sequence[str]
    ) -> Evaluation:
        """Further metrics of a run that is there; without it, the search is done again."""
        every = list(dict.fromkeys((*made.metrics, *metrics)))
        if (run := made.run) is None:
            self.workspace.reporter.note(f"{data.name}: the run beside {made.path} is gone or changed: evaluated again")
            return self._measure(results, identity, data, every)
        self._warn_of_depth(metrics)
        scoring = Scoring(data.qrels, every)
        for _ in scoring.watch(read_answers(run)):
            pass
        saved = results.save(identity, scoring.finish(), run, {"seconds": made.fields.get("seconds")})
        self.workspace.reporter.note(f"{data.name}: computed from {run}")
        return saved.narrowed(metrics)

    def _warn_of_depth(self, metrics: Sequence[str]) -> None:
        deep = [name for name in metrics if (cutoff(name) or 0) > self.settings.top_k]
        if deep:
            self.workspace.reporter.warn(f"{', '.join(deep)} look deeper than --top-k {self.settings.top_k}")


def evaluate_run(run: Path, qrels: Path, metrics: Sequence[str], name: str | None = None) -> dict[str, Any]:
    """``evaluate --run RUN --qrels QRELS``; benchmark and data set are the run file's stem, the model is ``name``.

    Without a ``name`` the model is called by the stem, too.
    """
    evaluation = evaluate(read_qrels(qrels), read_run(run), metrics)
    stem = input_stem(run)
    found = {**evaluation.means, "queries": evaluation.queries}
    mean = {metrics[0]: evaluation.means[metrics[0]], "datasets": 1}
    return {"benchmark": stem, "model": name or stem, "datasets": {stem: found}, "mean": mean}
