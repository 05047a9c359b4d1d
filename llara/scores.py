"""Scores of a run against judgments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from llara.arguments import path_of
from llara_cli.core.errors import UserError

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def evaluate(
    run: Run | str | Path, qrels: Qrels | str | Path, metrics: Sequence[str] = ("nDCG@10", "R@100", "MRR@10")
) -> dict[str, float]:
    """Evaluate a run: metrics from 0 to 1 as trec_eval computes them, means over all judged queries.

    Args:
        run: query id -> document id -> score, or a file (TREC or ``.jsonl``).
        qrels: query id -> document id -> grade, or a file (BEIR's or TREC's).
        metrics: names of ir_measures.

    Raises:
        UserError: for a damaged file, a score or grade that is not a number, and a metric that is unknown or does not
            suit these judgments.

    >>> import llara
    >>> llara.evaluate({"q1": {"d1": 0.9, "d2": 0.8}}, {"q1": {"d2": 1}}, ["MRR@10", "R@1"])
    {'MRR@10': 0.5, 'R@1': 0.0}
    """
    from llara_cli.data.runs import read_qrels, read_run
    from llara_cli.evaluation.metric_names import parse_metrics
    from llara_cli.evaluation.metrics import check_judgments
    from llara_cli.evaluation.metrics import evaluate as score

    wanted = "a mapping or a file"
    found_run: Any = _checked(run, "run") if isinstance(run, Mapping) else read_run(path_of(run, "run", wanted))
    found_qrels: Any = (
        _checked(qrels, "qrels") if isinstance(qrels, Mapping) else read_qrels(path_of(qrels, "qrels", wanted))
    )
    if not found_qrels:
        raise UserError("`qrels` has no query")
    names = parse_metrics(",".join(metrics))
    check_judgments(found_qrels, names)
    return dict(score(found_qrels, found_run, names).means)


def _checked(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A run or judgments. Raises ``UserError`` for a score that is not a number, or a grade that is not a whole one."""
    kind, wanted = (Integral, "a whole number") if name == "qrels" else (Real, "a number")
    for query, documents in given.items():
        if not isinstance(documents, Mapping):
            raise UserError(f"`{name}`: query {query!r} must have a mapping of document ids, not {documents!r}")
        for document, value in documents.items():
            if not isinstance(value, kind) or value != value:
                raise UserError(f"`{name}`: query {query!r}, document {document!r}: {value!r} is not {wanted}")
    return given
