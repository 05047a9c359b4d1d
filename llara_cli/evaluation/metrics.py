"""Metrics of a run, computed by ir_measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from ir_measures import Metric

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.data.runs import Qrels, Run
from llara_cli.data.text_files import one_line
from llara_cli.evaluation.metric_names import PROVIDERS, is_of_gdeval, parse

PerQuery = dict[str, dict[str, float]]
"""query id -> metric -> value."""
_GDEVAL_GRADE = 4
"""The highest grade that gdeval.pl supports."""
DEFAULT_METRICS = ("nDCG@10", "R@100", "MRR@10")


@dataclass(frozen=True)
class Evaluation:
    """``means`` over ``queries`` queries. Metrics keep the user's spelling."""

    means: dict[str, float]
    per_query: PerQuery
    queries: int


def evaluate(qrels: Qrels, run: Run, metrics: Sequence[str] = DEFAULT_METRICS) -> Evaluation:
    """Compute every metric for every query of ``qrels``, and the means.

    A query without hits counts 0, as does one without a relevant document; hits of other queries are ignored. Ties are
    ordered as in each measure's reference implementation, by descending document id in trec_eval (nDCG, R, AP) and by
    ascending id in MS MARCO's script (RR@k): the values are ir_measures' own. Raises ``UserError`` for an unknown
    metric, and if no query of the run is in ``qrels``.
    """
    if run and not run.keys() & qrels.keys():
        raise UserError(
            f"no query of the run has judgments: it has queries such as {min(run)!r}, the judgments such as "
            f"{min(qrels)!r}; do they belong together?"
        )
    return averaged(score_queries(qrels, run, metrics))


def check_judgments(qrels: Qrels, metrics: Sequence[str]) -> None:
    """Raise ``UserError`` for an unknown metric, or one that cannot be computed from these judgments."""
    _check_for_gdeval([parse(name) for name in metrics], qrels, {})


def score_queries(qrels: Qrels, run: Run, metrics: Sequence[str]) -> PerQuery:
    """Compute every metric for every query of ``qrels``; a query's values do not depend on the other queries.

    So a large run can be scored a few queries at a time. Raises ``UserError`` for an unknown metric.
    """
    measures = {name: parse(name) for name in metrics}
    values = _values(qrels, run, list(measures.values()))
    return {query: {name: values.get((query, measure), 0.0) for name, measure in measures.items()} for query in qrels}


def averaged(per_query: PerQuery) -> Evaluation:
    """The means of values from ``score_queries``, for at least one query."""
    count = len(per_query)
    names = next(iter(per_query.values()))
    # fsum: the same to the last bit whatever the order of the queries
    return Evaluation({name: fsum(row[name] for row in per_query.values()) / count for name in names}, per_query, count)


def _values(qrels: Qrels, run: Run, measures: list[Any]) -> dict[tuple[str, Any], float]:
    """(query id, measure) -> value, for queries with something to compute.

    Queries without hits, or with negative grades only, are left out: trec_eval aborts the process at the latter.
    Queries are numbered, as gdeval supports no other ids. Raises ``UserError`` if gdeval cannot read the judgments or
    the run, ``LlaraError`` if a provider fails.
    """
    judged = {query: grades for query, grades in qrels.items() if any(grade >= 0 for grade in grades.values())}
    names = {str(number): query for number, query in enumerate((query for query in judged if run.get(query)), start=1)}
    _check_for_gdeval(measures, {query: judged[query] for query in names.values()}, run)
    try:
        found = list(
            _calculated(
                measures,
                {number: judged[query] for number, query in names.items()},
                {number: run[query] for number, query in names.items()},
            )
        )
    except Exception as error:  # a provider may raise anything; its input was checked
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise LlaraError(f"{', '.join(map(str, measures))}: ir_measures' provider failed: {reason}") from error
    return {(names[value.query_id], value.measure): float(value.value) for value in found}


def _calculated(measures: Sequence[Any], qrels: Qrels, run: Run) -> Iterator[Metric]:
    """Values of ir_measures for queries that all have judgments and hits; a missing value counts 0."""
    usual = []
    for measure in measures:
        if measure.NAME == "Accuracy":
            yield from _accuracies(measure, qrels, run)
        elif measure.NAME == "Bpref":
            # If no grade is as high as ``rel``, trec_eval reads past the end of an array, and may crash.
            reached = {query: grades for query, grades in qrels.items() if max(grades.values()) >= measure["rel"]}
            yield from _asked([measure], reached, {query: run[query] for query in reached})
        else:
            usual.append(measure)
    yield from _asked(usual, qrels, run)


def _asked(measures: Sequence[Any], qrels: Qrels, run: Run) -> Iterator[Metric]:
    if measures and run:
        yield from PROVIDERS.evaluator(measures, qrels).iter_calc(run)


def _accuracies(measure: Any, qrels: Qrels, run: Run) -> Iterator[Metric]:
    """Accuracy: the share of pairs of a relevant and another hit that are in the right order.

    If all hits are relevant there is no pair, and ir_measures divides by zero: none is in the wrong order, so 1.
    """
    evaluator = PROVIDERS.evaluator([measure], qrels)
    for query, hits in run.items():
        try:
            yield from evaluator.iter_calc({query: hits})
        except ZeroDivisionError:
            yield Metric(query, measure, 1.0)


def _check_for_gdeval(measures: Sequence[Any], qrels: Qrels, run: Run) -> None:
    """Raise ``UserError`` for input that gdeval.pl refuses, if it computes any of the measures."""
    if not (refused := ", ".join(str(measure) for measure in measures if is_of_gdeval(measure))):
        return
    subject = f"{refused}: gdeval.pl computes it, and takes"
    for query, grades in qrels.items():
        if (highest := max(grades.values())) > _GDEVAL_GRADE:
            raise UserError(
                f"{subject} grades up to {_GDEVAL_GRADE}: query {query!r} has {highest}; leave the metric out"
            )
        spaced = next(
            (name for name in (*grades, *run.get(query, ())) if len(name.split()) != 1 or name != name.strip()), None
        )
        if spaced is not None:
            raise UserError(f"{subject} no document id such as {spaced!r}, empty or with white space: leave it out")
