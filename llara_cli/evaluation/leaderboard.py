"""The leaderboard of a result: other models of the workspace on the same data, and published results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from llara_cli.core.workspace import Workspace
from llara_cli.evaluation.results import Results, kept, of_folder
from llara_cli.evaluation.summary import Figures, counted, main_metric


@dataclass(frozen=True)
class LeaderboardEntry:
    """A system's results. ``figures``: data set -> metric -> value; ``source``: the source of published ones."""

    name: str
    figures: Mapping[str, Mapping[str, float]]
    source: str = ""

    def value(self, dataset: str, metric: str) -> float | None:
        """A value, or None."""
        return self.figures.get(dataset, {}).get(metric)

    def mean(self, datasets: Sequence[str], metric: str) -> float | None:
        """The mean over exactly these data sets; None if one is missing."""
        values = [value for name in datasets if (value := self.value(name, metric)) is not None]
        return sum(values) / len(values) if values and len(values) == len(datasets) else None


def leaderboard(workspace: Workspace, result: Mapping[str, Any], splits: Mapping[str, str]) -> list[LeaderboardEntry]:
    """The result's own model, then others of the workspace, then published ones, if they have a value to show.

    ``splits``: the split of each data set, as published results are for one split only.
    """
    own = LeaderboardEntry(result["model"], result["datasets"])
    customary = {name: figures for name, figures in result["datasets"].items() if _is_customary(name, splits)}
    beside = [*_others(workspace, result), *published()]
    shown = [system for system in beside if any(_shows(system, *item) for item in _items(system, result, customary))]
    return [own, *shown]


@cache
def published() -> tuple[LeaderboardEntry, ...]:
    """The results in ``published.json``, with their sources."""
    data = json.loads(files("llara_cli.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(LeaderboardEntry(row["name"], row["figures"], row["source"]) for row in data["systems"])


def means(benchmark: str, datasets: Mapping[str, Figures], system: LeaderboardEntry) -> float | None:
    """A system's mean over the data sets of the result's own mean."""
    names = counted(benchmark, datasets)
    if not names or len({main_metric(datasets[name]) for name in names}) > 1:
        return None
    return system.mean(names, main_metric(datasets[names[0]]))


def _items(
    system: LeaderboardEntry, result: Mapping[str, Any], customary: Mapping[str, Figures]
) -> Iterator[tuple[str, Figures]]:
    return iter((customary if system.source else result["datasets"]).items())


def _shows(system: LeaderboardEntry, dataset: str, figures: Figures) -> bool:
    return system.value(dataset, main_metric(figures)) is not None


def _is_customary(dataset: str, splits: Mapping[str, str]) -> bool:
    """Whether the split is the usual one, for which results are published."""
    usual = "dev" if dataset.startswith("msmarco") else "test"
    return splits.get(dataset, usual) == usual


def _others(workspace: Workspace, result: Mapping[str, Any]) -> Iterator[LeaderboardEntry]:
    """Other models' results on exactly the same data."""
    benchmark = str(result["benchmark"])
    own = Results(workspace, benchmark, str(result["model"]))
    for name, folder in kept(workspace).get(benchmark, {}).items():
        if folder == own.folder:
            continue
        found: dict[str, dict[str, float]] = {}
        for other in of_folder(folder):
            mine = own.load(other.dataset)
            if mine is not None and mine.data == other.data and mine.fields["split"] == other.fields["split"]:
                found[other.dataset] = other.metrics
        if found:
            yield LeaderboardEntry(name, found | _groups(found, result["datasets"]))


def _groups(found: Mapping[str, Mapping[str, float]], datasets: Mapping[str, Figures]) -> dict[str, dict[str, float]]:
    """The means of groups, over the same parts as the result's own."""
    groups = {}
    for name, figures in datasets.items():
        parts = [found.get(f"{name}/{forum}") for forum in figures.get("forums", {})]
        whole = [part for part in parts if part is not None]
        if parts and len(whole) == len(parts):
            shared = [metric for metric in whole[0] if all(metric in part for part in whole)]
            groups[name] = {metric: sum(part[metric] for part in whole) / len(whole) for metric in shared}
    return groups
