"""Run + judgements -> numbers. ir_measures computes every one of them; here is what it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from subprocess import CalledProcessError
from typing import Any

from llara_cli.console import LlaraError, UserError
from llara_cli.retrieval.measures import PROVIDERS, parse
from llara_cli.retrieval.runs import Qrels, Run

PerQuery = dict[str, dict[str, float]]
"""query id -> metric -> value."""
DEFAULT_METRICS = ("nDCG@10", "R@100", "MRR@10")


@dataclass(frozen=True)
class Evaluation:
    """``means`` over so many ``queries``. Metrics keep their spelling."""

    means: dict[str, float]
    per_query: PerQuery
    queries: int


def evaluate(qrels: Qrels, run: Run, metrics: Sequence[str] = DEFAULT_METRICS) -> Evaluation:
    """Every metric for every query of ``qrels``, and their means.

    A query without hits counts 0, as does one without a relevant document; hits of other queries are ignored. Equal
    scores are ordered as each measure's reference implementation has them, by falling document id in trec_eval (nDCG,
    R, AP) and by rising id in MS MARCO's script (RR@k): the figures are ir_measures' own. Raises ``UserError`` for an
    unknown metric, and where no query of the run is in ``qrels``.
    """
    if run and not run.keys() & qrels.keys():
        raise UserError(
            f"no query of the run has judgements: it has queries such as {min(run)!r}, the judgements such as "
            f"{min(qrels)!r}; do they belong together?"
        )
    return averaged(score_queries(qrels, run, metrics))


def score_queries(qrels: Qrels, run: Run, metrics: Sequence[str]) -> PerQuery:
    """Every metric for every query of ``qrels``; a query's values do not depend on what else is asked with it.

    So a large run can be looked at a few queries at a time. Raises ``UserError`` for an unknown metric.
    """
    measures = {name: parse(name) for name in metrics}
    values = _values(qrels, run, list(measures.values()))
    return {query: {name: values.get((query, measure), 0.0) for name, measure in measures.items()} for query in qrels}


def averaged(per_query: PerQuery) -> Evaluation:
    """The means of what ``score_queries`` gave for one query at least."""
    count = len(per_query)
    names = next(iter(per_query.values()))
    # fsum: the same to the last bit whatever the order of the queries
    return Evaluation({name: fsum(row[name] for row in per_query.values()) / count for name in names}, per_query, count)


def _values(qrels: Qrels, run: Run, measures: list[Any]) -> dict[tuple[str, Any], float]:
    """(query id, measure) -> value, where there is something to compute.

    A query without hits is left out, and one with negative grades alone: trec_eval ends the process at it. Queries are
    given numbers: one of the providers, gdeval, knows no other ids. Raises ``LlaraError`` where a provider fails.
    """
    judged = {query: grades for query, grades in qrels.items() if any(grade >= 0 for grade in grades.values())}
    names = dict(enumerate((query for query in judged if run.get(query)), start=1))
    if not names:
        return {}
    evaluator = PROVIDERS.evaluator(measures, {str(number): judged[query] for number, query in names.items()})
    try:
        found = list(evaluator.iter_calc({str(number): run[query] for number, query in names.items()}))
    except (CalledProcessError, OSError) as error:
        raise LlaraError(f"{', '.join(map(str, measures))}: ir_measures' provider failed: {error}") from error
    return {(names[int(value.query_id)], value.measure): float(value.value) for value in found}
