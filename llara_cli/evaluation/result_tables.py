"""Tables of a result as rows and columns, for any output format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llara_cli.evaluation.leaderboard import LeaderboardEntry, means
from llara_cli.evaluation.summary import Figures, counted, main_metric


@dataclass(frozen=True)
class Row:
    """Cells as text; ``best``: those in bold; ``kind``: plain, ``part`` (of a group) or ``total``."""

    label: str
    cells: Sequence[str]
    best: frozenset[int] = frozenset()
    kind: str = "plain"


@dataclass(frozen=True)
class ResultTable:
    """A table with a line of headings, and ``notes`` below."""

    title: str
    corner: str
    heads: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)


def result_table(result: Mapping[str, Any]) -> ResultTable:
    """The table of one model: a row per data set, a column per metric."""
    datasets: Mapping[str, Figures] = result["datasets"]
    metrics = list(dict.fromkeys(name for figures in datasets.values() for name in _metrics(figures)))
    rows = []
    for name, figures in datasets.items():
        rows.append(_own_row(name, figures, metrics, "plain"))
        rows += [_own_row(forum, part, metrics, "part") for forum, part in figures.get("forums", {}).items()]
    title = f"{result['benchmark']}: {result['model']}" if result["benchmark"] != result["model"] else result["model"]
    if len(datasets) > 1 and (mean := _mean(result)) is not None:
        cells = [_shown(mean) if metric == main_metric(next(iter(datasets.values()))) else "" for metric in metrics]
        rows.append(Row(f"mean of {result['mean']['datasets']}", [*cells, ""], kind="total"))
    return ResultTable(title, "data set", [*metrics, "queries"], rows, _absences(result))


def leaderboard_table(result: Mapping[str, Any], leaderboard: Sequence[LeaderboardEntry]) -> ResultTable | None:
    """The main metric of each data set, a column per system, the best in bold; None without other systems."""
    if len(leaderboard) < 2:
        return None
    datasets: Mapping[str, Figures] = result["datasets"]
    main = {name: main_metric(figures) for name, figures in datasets.items()}
    shared = len(set(main.values())) == 1
    rows = [
        compared_row(name if shared else f"{name} {metric}", [system.value(name, metric) for system in leaderboard])
        for name, metric in main.items()
    ]
    names = counted(str(result["benchmark"]), datasets)
    if len(datasets) > 1 and _mean(result) is not None:
        values = [means(str(result["benchmark"]), datasets, system) for system in leaderboard]
        rows.append(compared_row(f"mean of {len(names)}", values, kind="total"))
    title = f"{result['benchmark']}: {next(iter(main.values()))}" if shared else str(result["benchmark"])
    return ResultTable(title, "data set", [system.name for system in leaderboard], rows, _sources(leaderboard))


def _own_row(name: str, figures: Figures, metrics: Sequence[str], kind: str) -> Row:
    cells = [_shown(figures[metric]) if metric in figures else "" for metric in metrics]
    missing = len(figures.get("missing_forums", ()))
    label = f"{name} ({len(figures['forums'])} of {len(figures['forums']) + missing})" if missing else name
    return Row(label, [*cells, f"{figures['queries']:,}"], kind=kind)


def compared_row(label: str, values: Sequence[float | None], kind: str = "plain") -> Row:
    # compared as shown: equal text is equally good
    cells = [_shown(value) if value is not None else "" for value in values]
    there = [round(100 * value, 2) for value in values if value is not None]
    best = [place for place, value in enumerate(values) if value is not None and round(100 * value, 2) == max(there)]
    return Row(label, cells, frozenset(best if len(there) > 1 else ()), kind)


def _absences(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: a mean over {len(figures['forums'])} forums, so not in the mean; missing: "
        + ", ".join(figures["missing_forums"])
        for name, figures in result["datasets"].items()
        if "missing_forums" in figures
    ]


def _sources(leaderboard: Sequence[LeaderboardEntry]) -> list[str]:
    """Each source once, with its systems."""
    sources = dict.fromkeys(system.source for system in leaderboard if system.source)
    return [
        f"{', '.join(system.name for system in leaderboard if system.source == source)}: {source}" for source in sources
    ]


def _mean(result: Mapping[str, Any]) -> float | None:
    value = next(value for name, value in result["mean"].items() if name != "datasets")
    return None if value is None else float(value)


def _metrics(figures: Figures) -> list[str]:
    return [name for name in figures if name not in ("queries", "forums", "missing_forums")]


def _shown(value: float) -> str:
    return f"{100 * value:.2f}"
