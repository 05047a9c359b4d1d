"""What an evaluation leaves behind: ``results/BENCHMARK/MODEL/DATASET.json`` and the run beside it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llara_cli import __version__
from llara_cli.artifacts import dump, read_json, sha256_file, slug, write_atomically
from llara_cli.console import LlaraError
from llara_cli.retrieval.metrics import Evaluation, PerQuery, averaged
from llara_cli.workspace import Workspace

FOLDER = "results"
_PACKAGES = (
    "torch", "transformers", "sentence-transformers", "numpy", "ir_measures", "pytrec_eval-terrier", "bm25s",
    "ir_datasets",
)  # fmt: skip
_PARTS = {"dataset", "model", "metrics", "per_query", "fingerprints", "settings", "run"}
Identity = dict[str, Any]
"""What makes two evaluations the same: data set, split, settings, fingerprints."""


@dataclass(frozen=True)
class Result:
    """The figures of one model on one data set, with all that is needed to tell whether they still hold."""

    path: Path
    fields: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Its name, with the group before a slash."""
        return str(self.fields["dataset"])

    @property
    def model(self) -> str:
        """The name under which it stands in tables."""
        return str(self.fields["model"])

    @property
    def metrics(self) -> dict[str, float]:
        """Means."""
        return dict(self.fields["metrics"])

    @property
    def per_query(self) -> PerQuery:
        """Query id -> metric -> value."""
        return dict(self.fields["per_query"])

    @property
    def run(self) -> Path | None:
        """The run, where it is still what it was."""
        run = self.fields["run"]
        path = self.path.parent / str(run["file"])
        return path if path.is_file() and sha256_file(path) == run["sha256"] else None

    @property
    def data(self) -> dict[str, str]:
        """Fingerprints of corpus, queries and judgements."""
        return {part: self.fields["fingerprints"][part] for part in ("corpus", "queries", "qrels")}

    def narrowed(self, metrics: Sequence[str]) -> Evaluation:
        """These metrics alone, in this order."""
        return averaged({query: {name: row[name] for name in metrics} for query, row in self.per_query.items()})

    def differs(self, identity: Identity) -> str:
        """Why it is not the result of ``identity``; "" where it is."""
        for part in ("split", "fingerprints", "settings"):
            old, new = self.fields.get(part), identity[part]
            if old == new:
                continue
            if not (isinstance(old, dict) and isinstance(new, dict)):
                return f"{part} was {old!r}, now {new!r}"
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            if part == "fingerprints":
                return f"another {' and '.join(keys)}"
            return "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in keys)
        return ""


class Results:
    """The results of one model on one benchmark."""

    def __init__(self, workspace: Workspace, benchmark: str, model: str) -> None:
        self._benchmark = benchmark
        self._model = model
        self.folder = workspace.root / FOLDER / slug(benchmark) / slug(model)

    def path(self, dataset: str) -> Path:
        """Where a data set's result is; a part of a group lies in the group's folder."""
        *groups, name = map(slug, dataset.split("/"))
        return self.folder.joinpath(*groups, f"{name}.json")

    def load(self, dataset: str) -> Result | None:
        """A data set's result, if there is a whole one."""
        return load(self.path(dataset))

    def save(self, identity: Identity, evaluation: Evaluation, run: Path, measured: Mapping[str, Any]) -> Result:
        """Write a result, atomically and last: the run must be there."""
        path = self.path(identity["dataset"])
        fields = {
            "benchmark": self._benchmark,
            "model": self._model,
            **identity,
            "metrics": evaluation.means,
            "queries": evaluation.queries,
            "run": {"file": run.name, "sha256": sha256_file(run)},
            "versions": versions(),
            **measured,
            "per_query": evaluation.per_query,
        }
        write_atomically(path, dump(fields))
        return Result(path, fields)

    def save_group(self, name: str, figures: Mapping[str, Any]) -> None:
        """Write the figures of a group beside the folder that has its parts."""
        fields = {"benchmark": self._benchmark, "model": self._model, "dataset": name, **figures}
        write_atomically(self.path(name), dump(fields))


def load(path: Path) -> Result | None:
    """A result on disk; None where there is none, or a file that is not one."""
    if not path.is_file():
        return None
    try:
        fields = read_json(path)
    except LlaraError:
        return None
    whole = isinstance(fields, dict) and fields.keys() >= _PARTS
    return Result(path, fields) if whole else None


def models(workspace: Workspace, benchmark: str) -> list[str]:
    """Folder names of the models that have results on a benchmark."""
    return sorted(
        path.name for path in (workspace.root / FOLDER / slug(benchmark)).glob("*") if any(path.rglob("*.json"))
    )


def of_model(workspace: Workspace, benchmark: str, model: str) -> list[Result]:
    """Every result of a model on a benchmark."""
    folder = workspace.root / FOLDER / slug(benchmark) / slug(model)
    found = (load(path) for path in sorted(folder.rglob("*.json")))
    return [result for result in found if result is not None]


def comparison_path(workspace: Workspace, benchmark: str, names: Sequence[str]) -> Path:
    """Where a comparison is drawn, without the ending."""
    return workspace.root / FOLDER / slug(benchmark) / f"compare-{'-'.join(map(slug, names))}"[:150]


def versions() -> dict[str, str]:
    """What computed the figures."""
    found = {"llara": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
