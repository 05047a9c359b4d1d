"""Tables as text: Markdown, LaTeX (booktabs), CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llara_cli.core.errors import UserError
from llara_cli.evaluation.leaderboard import LeaderboardEntry, means
from llara_cli.evaluation.result_tables import ResultTable, Row

FORMATS = ("table", "markdown", "latex", "csv", "json")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_SPECIAL = re.compile(r"[\\&%$#_{}~^]")


def check_format(name: str, *, as_json: bool) -> None:
    """Raise ``UserError`` for an unknown format, or one together with ``--json``."""
    if name not in FORMATS:
        raise UserError(f"unknown `format={name!r}`: known are {', '.join(FORMATS)}")
    if as_json and name not in ("table", "json"):
        raise UserError(f"`json=True` and `format={name}` exclude each other")


def markdown(tables: Sequence[ResultTable]) -> str:
    """Pipe tables, each with its title above and notes below."""
    return "\n".join(map(_markdown, tables))


def latex(tables: Sequence[ResultTable]) -> str:
    """``tabular`` environments for ``booktabs``, with title and notes as comments."""
    return "\n".join(map(_latex, tables))


def as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with a header line; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((header, *rows))
    return text.getvalue()


def figures_csv(result: Mapping[str, Any], leaderboard: Sequence[LeaderboardEntry]) -> str:
    """One line per value, from 0 to 1: data set, system, metric, value, queries, source."""
    rows: list[Sequence[object]] = []
    for name, figures in result["datasets"].items():
        parts = {name: figures} | {f"{name}/{forum}": part for forum, part in figures.get("forums", {}).items()}
        for label, part in parts.items():
            numbers = {metric: value for metric, value in part.items() if isinstance(value, float)}
            rows += [(label, result["model"], metric, value, part["queries"], "") for metric, value in numbers.items()]
        for system in leaderboard[1:]:
            found = {metric: system.value(name, metric) for metric in figures}
            known = {metric: value for metric, value in found.items() if value is not None}
            rows += [(name, system.name, metric, value, "", system.source) for metric, value in known.items()]
    return as_csv(
        ("dataset", "system", "metric", "value", "queries", "source"), [*rows, *_mean_rows(result, leaderboard)]
    )


def _mean_rows(result: Mapping[str, Any], leaderboard: Sequence[LeaderboardEntry]) -> list[Sequence[object]]:
    metric = next(name for name in result["mean"] if name != "datasets")
    if len(result["datasets"]) < 2:
        return []
    found = [(system, means(str(result["benchmark"]), result["datasets"], system)) for system in leaderboard]
    return [("mean", system.name, metric, value, "", system.source) for system, value in found if value is not None]


def _markdown(table: ResultTable) -> str:
    head = "| " + " | ".join(map(_pipe, (table.corner, *table.heads))) + " |"
    rule = "| --- |" + " ---: |" * len(table.heads)
    lines = [f"**{table.title}**", "", head, rule, *(_markdown_row(row) for row in table.rows), ""]
    return "\n".join([*lines, *(f"{note}\n" for note in table.notes)])


def _markdown_row(row: Row) -> str:
    cells = [f"**{_pipe(cell)}**" if place in row.best else _pipe(cell) for place, cell in enumerate(row.cells)]
    label = _pipe(row.label)
    return "| " + " | ".join([f"&nbsp;&nbsp;{label}" if row.kind == "part" else label, *cells]) + " |"


def _pipe(text: str) -> str:
    return text.replace("|", r"\|")


def _latex(table: ResultTable) -> str:
    heads = " & ".join(_tex(head) for head in (table.corner, *table.heads))
    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{l{'r' * len(table.heads)}}}",
        r"\toprule",
        rf"{heads} \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [
            rf"\textbf{{{_tex(cell)}}}" if place in row.best else _tex(cell) for place, cell in enumerate(row.cells)
        ]
        label = rf"\quad {_tex(row.label)}" if row.kind == "part" else _tex(row.label)
        lines += [r"\midrule"] * (row.kind == "total") + [rf"{' & '.join([label, *cells])} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in table.notes), ""])


def _tex(text: str) -> str:
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)
