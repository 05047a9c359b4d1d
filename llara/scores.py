"""Scores of a run against judgments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        UserError: for a damaged file, and for a metric that is unknown or does not suit these judgments.

    >>> import llara
    >>> llara.evaluate({"q1": {"d1": 0.9, "d2": 0.8}}, {"q1": {"d2": 1}}, ["MRR@10", "R@1"])
    {'MRR@10': 0.5, 'R@1': 0.0}
    """
    from llara_cli.data.runs import read_qrels, read_run
    from llara_cli.evaluation.metric_names import parse_metrics
    from llara_cli.evaluation.metrics import check_judgments
    from llara_cli.evaluation.metrics import evaluate as score

    found_run: Any = run if isinstance(run, Mapping) else read_run(Path(run))
    found_qrels: Any = qrels if isinstance(qrels, Mapping) else read_qrels(Path(qrels))
    if not found_qrels:
        raise UserError("`qrels` has no query")
    names = parse_metrics(",".join(metrics))
    check_judgments(found_qrels, names)
    return dict(score(found_qrels, found_run, names).means)
