"""Summary of a benchmark: groups of data sets, and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llara_cli.evaluation.benchmarks import BENCHMARKS, Task
from llara_cli.evaluation.metrics import Evaluation

Figures = dict[str, Any]
"""metric -> value, ``queries``; for a group also ``forums``, and ``missing_forums`` if it is incomplete."""


def summarize(benchmark: str, model: str, evaluations: Mapping[Task, Evaluation]) -> dict[str, Any]:
    """``{"benchmark", "model", "datasets", "mean"}``; a group's value is the mean of its parts."""
    figures = {task: {**found.means, "queries": found.queries} for task, found in evaluations.items()}
    datasets = grouped(benchmark, figures)
    mean = averaged(datasets, counted(benchmark, datasets))
    return {"benchmark": benchmark, "model": model, "datasets": datasets, "mean": mean}


def counted(benchmark: str, datasets: Mapping[str, Figures]) -> list[str]:
    """The data sets of the mean.

    Left out are those that the benchmark excludes (MS MARCO from BEIR's zero-shot sets), unless there is nothing else,
    and incomplete groups.
    """
    tasks = BENCHMARKS[benchmark].tasks if benchmark in BENCHMARKS else ()
    apart = {task.group for task in tasks if not task.in_mean}
    wanted = [name for name in datasets if name not in apart] or list(datasets)
    return [name for name in wanted if "missing_forums" not in datasets[name]]


def main_metric(figures: Figures) -> str:
    """The first of a data set's metrics."""
    return next(name for name in figures if name not in ("queries", "forums", "missing_forums"))


def grouped(benchmark: str, figures: Mapping[Task, Figures]) -> dict[str, Figures]:
    """Values by data set, with parts of a group gathered in it."""
    found: dict[str, Figures] = {}
    for task, values in figures.items():
        if task.group == task.name:
            found[task.name] = values
        else:
            group = found.setdefault(task.group, {"forums": {}})
            group["forums"][task.name.partition("/")[2]] = values
    return {name: _group(benchmark, name, values) if "forums" in values else values for name, values in found.items()}


def averaged(datasets: Mapping[str, Figures], names: Sequence[str]) -> dict[str, Any]:
    """The mean of the main metric over the data sets ``names``; None if they do not share it."""
    main = main_metric(next(iter(datasets.values())))
    values = [datasets[name][main] for name in names if main_metric(datasets[name]) == main]
    if not values or len(values) < len(names):
        return {main: None, "datasets": 0}
    return {main: sum(values) / len(values), "datasets": len(values)}


def _group(benchmark: str, name: str, values: Figures) -> Figures:
    forums = values["forums"]
    metrics = [metric for metric in next(iter(forums.values())) if metric != "queries"]
    figures = {metric: sum(forum[metric] for forum in forums.values()) / len(forums) for metric in metrics}
    figures |= {"queries": sum(forum["queries"] for forum in forums.values()), "forums": forums}
    missing = [part for part in BENCHMARKS[benchmark].parts(name) if part.partition("/")[2] not in forums]
    return figures | ({"missing_forums": [part.partition("/")[2] for part in missing]} if missing else {})
