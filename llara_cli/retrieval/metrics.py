"""Run + judgements -> numbers. ir_measures computes every one of them; here is what it leaves open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
from ir_measures import providers

from llara_cli.console import UserError
from llara_cli.retrieval.runs import Qrels, Run

DEFAULT_METRICS = ("nDCG@10", "R@100", "MRR@10")
_SPELLING = re.compile(r"(\w+)(?:\(rel=(\d+)\))?(?:@(\d+))?")
"""``nDCG``, ``R@100``, ``R(rel=2)@100``: read here, as ir_measures' own parser needs a Python before 3.14."""
_EXAMPLES = "nDCG@10, R@100, MRR@10, AP, P@5, R(rel=2)@100, Success@5"
_LARGEST = 1_000_000
_MEASURES = {
    name.casefold(): measure
    for name, measure in ir_measures.measures.registry.items()
    if not name.startswith("Num")  # counts, to be summed: no metrics from 0 to 1
}
_PROVIDERS = providers.FallbackProvider([ir_measures.pytrec_eval, ir_measures.judged, ir_measures.msmarco])
"""Named, so that a number does not depend on what else is installed."""


@dataclass(frozen=True)
class Evaluation:
    """``means`` over so many ``queries``; ``per_query``: query id -> metric -> value. Metrics keep their spelling."""

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int


def evaluate(qrels: Qrels, run: Run, metrics: Sequence[str] = DEFAULT_METRICS) -> Evaluation:
    """Every metric for every query of ``qrels``, and their means.

    A query without hits counts 0, as does one without a relevant document; hits of other queries are ignored. Equal
    scores are ordered as each measure's reference implementation has them, by falling document id in trec_eval (nDCG,
    R, AP) and by rising id in MS MARCO's script (RR@k): the figures are ir_measures' own. Raises ``UserError`` for an
    unknown metric, and where no query of the run is in ``qrels``.
    """
    measures = {name: _parse(name) for name in metrics}
    if run and not run.keys() & qrels.keys():
        raise UserError(
            f"no query of the run has judgements: it has queries such as {min(run)!r}, the judgements such as "
            f"{min(qrels)!r}; do they belong together?"
        )
    values = _values(qrels, run, list(measures.values()))
    per_query = {
        query: {name: values.get((query, measure), 0.0) for name, measure in measures.items()} for query in qrels
    }
    means = {name: sum(row[name] for row in per_query.values()) / len(per_query) for name in measures}
    return Evaluation(means, per_query, len(per_query))


def _values(qrels: Qrels, run: Run, measures: list[Any]) -> dict[tuple[str, Any], float]:
    """(query id, measure) -> value, where there is something to compute.

    A query without hits is left out, and one with negative grades alone: trec_eval ends the process at it.
    """
    judged = {query: grades for query, grades in qrels.items() if any(grade >= 0 for grade in grades.values())}
    scored = {query: run[query] for query in judged if run.get(query)}
    if not scored:
        return {}
    found = _PROVIDERS.evaluator(measures, judged).iter_calc(scored)
    return {(value.query_id, value.measure): float(value.value) for value in found}


def parse_metrics(listed: str) -> tuple[str, ...]:
    """Metrics separated by commas. Raises ``UserError`` for an unknown one, and where there is none."""
    names = tuple(item.strip() for item in listed.split(",") if item.strip())
    if not names:
        raise UserError(f"no metric given: known are such as {_EXAMPLES}")
    for name in names:
        _parse(name)
    return names


def _parse(name: str) -> Any:
    spelling = _SPELLING.fullmatch(name.strip())
    measure = _MEASURES.get(spelling[1].casefold()) if spelling else None
    if spelling is None or measure is None:
        raise UserError(f"unknown metric {name!r}: known are such as {_EXAMPLES}")
    given = {"rel": spelling[2], measure.AT_PARAM: spelling[3]}
    parameters = {key: int(value) for key, value in given.items() if value is not None}
    # trec_eval does not refuse a cutoff of 0: it ends the process.
    if not all(1 <= value <= _LARGEST for value in parameters.values()):
        raise UserError(f"metric {name!r}: its numbers must lie between 1 and {_LARGEST}")
    return _supported(name, measure(**parameters))


def _supported(name: str, measure: Any) -> Any:
    """``measure`` itself. Raises ``UserError`` where it lacks a parameter, or nobody here computes it."""
    try:
        supported = _PROVIDERS.supports(measure)
    except AssertionError as error:
        raise UserError(f"metric {name!r} lacks its cutoff, or has what it does not take: {_EXAMPLES}") from error
    if not supported:
        raise UserError(f"metric {name!r} cannot be computed here: known are such as {_EXAMPLES}")
    return measure
