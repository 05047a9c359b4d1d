"""Tables of a comparison: a model against the first, one line per data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llara_cli.evaluation.result_tables import ResultTable, Row, compared_row
from llara_cli.evaluation.table_formats import as_csv

SIGNIFICANT = 0.05
_NAMES = {"t-test": "paired t-test", "randomisation": "paired randomisation test"}

MEAN = "mean"
"""Name of the mean among the data sets."""


def comparison_tables(result: Mapping[str, Any]) -> list[ResultTable]:
    """One table per compared model, with a legend below the last."""
    made = [_comparison_table(result, comparison) for comparison in result["comparisons"]]
    tests = sum(len(comparison["rows"]) for comparison in result["comparisons"])
    corrected = f"p after Holm's correction over {tests} tests" if tests > 1 else "p"
    note = f"{_NAMES[result['test']]}, two-sided; {corrected}, * below {SIGNIFICANT}"
    return [*made[:-1], ResultTable(made[-1].title, made[-1].corner, made[-1].heads, made[-1].rows, [note])]


def comparison_csv(result: Mapping[str, Any]) -> str:
    """One line per data set and compared model."""
    head = (
        "dataset", "metric", "baseline", "model", "baseline_score", "score", "difference", "wins", "ties", "losses",
        "p", "p_holm",
    )  # fmt: skip
    rows: list[Sequence[object]] = []
    for comparison in result["comparisons"]:
        first, model = comparison["baseline"], comparison["model"]
        for name, row in comparison["rows"].items():
            scored = _scored(result, name)
            scores = scored["scores"]
            figures = [row[key] for key in ("difference", "wins", "ties", "losses", "p", "p_holm")]
            rows.append((name, scored["metric"], first, model, scores[first], scores[model], *figures))
    return as_csv(head, rows)


def _comparison_table(result: Mapping[str, Any], comparison: Mapping[str, Any]) -> ResultTable:
    first, model = comparison["baseline"], comparison["model"]
    metrics = list(dict.fromkeys(_scored(result, name)["metric"] for name in comparison["rows"]))
    title = f"{result['benchmark']}{f' ({metrics[0]})' if len(metrics) == 1 else ''}: {model} against {first}"
    heads = [first, model, "difference", "wins", "ties", "losses", "p"]
    return ResultTable(title, "data set", heads, list(_rows(result, comparison, shared=len(metrics) == 1)))


def _rows(result: Mapping[str, Any], comparison: Mapping[str, Any], *, shared: bool) -> Iterator[Row]:
    for name, row in comparison["rows"].items():
        scored = _scored(result, name)
        label = "mean" if name == MEAN else name if shared else f"{name} {scored['metric']}"
        values = [scored["scores"][comparison[role]] for role in ("baseline", "model")]
        two = compared_row(label, values, "total" if name == MEAN else "plain")
        counts = [f"{row[key]:,}" for key in ("wins", "ties", "losses")]
        cells = [*two.cells, f"{100 * row['difference']:+.2f}", *counts, _shown_p(row["p_holm"])]
        yield Row(label, cells, two.best, two.kind)


def _scored(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result["mean"] if name == MEAN else result["datasets"][name]
    return found


def _shown_p(value: float | None) -> str:
    if value is None:
        return "n/a"
    text = "<0.0001" if value < 0.0001 else f"{value:.4f}"
    return f"{text} *" if value < SIGNIFICANT else f"{text}  "
