"""``compare``: models that were evaluated on the same queries, compared with the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.evaluation.benchmarks import BENCHMARKS
from llara_cli.evaluation.comparison_tables import MEAN
from llara_cli.evaluation.metrics import DEFAULT_METRICS
from llara_cli.evaluation.results import FOLDER, Result, find_name, kept, of_folder
from llara_cli.evaluation.significance import Stratum, figure, holm, interval, named_test, wins


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the comparison: the parts (results of one data set each) whose weighted mean it is."""

    name: str
    metric: str
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Comparing:
    """One run of ``compare``; ``metric`` None: the main one of each data set."""

    workspace: Workspace
    given_names: Sequence[str]
    given_benchmark: str | None = None
    metric: str | None = None
    test: str = "t-test"

    def run(self) -> dict[str, Any]:
        """Compare: metrics with intervals, and each further model against the first; returns the command's result."""
        test = named_test(self.test)
        if len(set(self.given_names)) < 2 or len(set(self.names)) < 2:
            raise UserError("name at least two models: llara compare MODEL_A MODEL_B")
        table_rows = self._comparison_rows()
        scores = {row.name: self._scores(row) for row in table_rows}
        compared = self._corrected([self._against(name, table_rows, test) for name in self.names[1:]])
        mean = scores.pop(MEAN, None)
        return {
            "benchmark": self.benchmark,
            "models": self.names,
            "test": self.test,
            "datasets": scores,
            **({"mean": mean} if mean else {}),
            "comparisons": compared,
        }

    @cached_property
    def names(self) -> list[str]:
        """The models' names, each once. Raises ``UserError`` for one without any results."""
        known = sorted({name for folders in self._kept.values() for name in folders})
        found = {given: find_name(given, known) for given in self.given_names}
        if unknown := [given for given, name in found.items() if name is None]:
            folder = self.workspace.root / FOLDER
            raise UserError(
                f"no results of {', '.join(unknown)} in {folder}; there are: {', '.join(known) or 'none yet'}"
            )
        return list(dict.fromkeys(name for name in found.values() if name is not None))

    @cached_property
    def _kept(self) -> dict[str, dict[str, Path]]:
        """Existing results: benchmark -> model -> folder."""
        return kept(self.workspace)

    @cached_property
    def benchmark(self) -> str:
        """The benchmark on which all have results. Raises ``UserError`` if there is none, or several."""
        shared = [name for name, folders in self._kept.items() if folders.keys() >= set(self.names)]
        if self.given_benchmark is not None:
            if (found := find_name(self.given_benchmark, shared)) is None:
                have = ", ".join(shared) or "none"
                raise UserError(f"`benchmark={self.given_benchmark}`: not all have results on it; on all: {have}")
            return found
        if len(shared) != 1:
            raise UserError(
                f"several benchmarks have results of all: choose with `benchmark`: {', '.join(shared)}"
                if shared
                else f"{' and '.join(self.names)} have results on no benchmark in common"
            )
        return shared[0]

    @cached_property
    def results(self) -> dict[str, dict[str, Result]]:
        """Data set -> model -> result, for the data sets that all have, in the benchmark's order.

        Raises ``UserError`` if there is none, or models were evaluated on different data.
        """
        folders = self._kept[self.benchmark]
        found = {name: {result.dataset: result for result in of_folder(folders[name])} for name in self.names}
        every = list(dict.fromkeys(dataset for results in found.values() for dataset in results))
        shared = [name for name in every if all(name in results for results in found.values())]
        if not shared:
            raise UserError(f"{' and '.join(self.names)} have no data set of {self.benchmark} in common")
        if left := [name for name in every if name not in shared]:
            self.workspace.reporter.warn(f"not evaluated for all models, left out: {', '.join(left)}")
        tasks = [task.name for task in self._tasks]
        order = [name for name in tasks if name in shared] + [name for name in shared if name not in tasks]
        return {name: self._same_data(name, {model: found[model][name] for model in self.names}) for name in order}

    @property
    def _tasks(self) -> Sequence[Any]:
        return BENCHMARKS[self.benchmark].tasks if self.benchmark in BENCHMARKS else ()

    def _same_data(self, dataset: str, results: dict[str, Result]) -> dict[str, Result]:
        """Return the results. Raises ``UserError`` if their queries or judgments differ."""
        first = results[self.names[0]]
        for name, result in results.items():
            if result.data != first.data or result.per_query.keys() != first.per_query.keys():
                raise UserError(
                    f"{dataset}: {self.names[0]} and {name} were evaluated on different data: evaluate one again"
                )
        return results

    def _comparison_rows(self) -> list[ComparisonRow]:
        """A row for each data set or group, and one for the mean if there are several with one metric."""
        groups: dict[str, list[str]] = {}
        for dataset in self.results:
            groups.setdefault(dataset.partition("/")[0], []).append(dataset)
        table_rows = [
            ComparisonRow(name, self._metric(parts[0]), dict.fromkeys(parts, 1 / len(parts)))
            for name, parts in groups.items()
        ]
        counted = [row for row in table_rows if self._counts(row)]
        if len(counted) > 1 and len({row.metric for row in counted}) == 1:
            weights = {part: weight / len(counted) for row in counted for part, weight in row.parts.items()}
            table_rows.append(ComparisonRow(MEAN, counted[0].metric, weights))
        return table_rows

    def _counts(self, row: ComparisonRow) -> bool:
        """Whether a row counts towards the mean: neither MS MARCO in BEIR nor an incomplete group."""
        parts = [task for task in self._tasks if task.group == row.name]
        return not parts or (parts[0].in_mean and len(parts) == len(row.parts))

    def _metric(self, dataset: str) -> str:
        task = next((task for task in self._tasks if task.name == dataset), None)
        wanted = self.metric or (task.metrics[0] if task else DEFAULT_METRICS[0])
        for name, result in self.results[dataset].items():
            if wanted not in result.metrics:
                there = ", ".join(result.metrics)
                raise UserError(
                    f"{dataset}: {name} has no {wanted}, but {there}; evaluate with `metrics={wanted}` to add it"
                )
        return wanted

    def _strata(self, row: ComparisonRow, model: str) -> list[Stratum]:
        """The model's values per part, with queries in the same order for all models."""
        found = []
        for part, weight in row.parts.items():
            values, order = self.results[part][model].per_query, self.results[part][self.names[0]].per_query
            found.append(Stratum(np.array([values[query][row.metric] for query in order]), weight))
        return found

    def _scores(self, row: ComparisonRow) -> dict[str, Any]:
        strata = {name: self._strata(row, name) for name in self.names}
        return {
            "metric": row.metric,
            "queries": sum(len(stratum.values) for stratum in strata[self.names[0]]),
            "scores": {name: figure(values) for name, values in strata.items()},
            "intervals": {name: interval(values) for name, values in strata.items()},
        }

    def _against(
        self, name: str, table_rows: Sequence[ComparisonRow], test: Callable[[Sequence[Stratum]], float | None]
    ) -> dict[str, Any]:
        """Compare a model with the first."""
        rows = {}
        for row in table_rows:
            pairs = zip(self._strata(row, name), self._strata(row, self.names[0]), strict=True)
            differences = [Stratum(mine.values - theirs.values, mine.weight) for mine, theirs in pairs]
            rows[row.name] = {"difference": figure(differences), **wins(differences), "p": test(differences)}
        return {"baseline": self.names[0], "model": name, "rows": rows}

    def _corrected(self, compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Apply Holm's correction over all tests of this comparison."""
        rows = [row for comparison in compared for row in comparison["rows"].values()]
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = corrected
        return compared
