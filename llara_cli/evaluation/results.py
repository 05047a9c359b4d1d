"""Stored results: ``results/BENCHMARK/MODEL/DATASET.json`` and the run beside it."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llara_cli import __version__
from llara_cli.core.artifacts import dump, read_json, sha256_file, write_atomically
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.names import NAME_BYTES, folder_name, normal, slug
from llara_cli.core.workspace import Workspace
from llara_cli.evaluation.metrics import Evaluation, PerQuery, averaged

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
    """Results of one model on one data set, with everything needed to tell whether they are up to date."""

    path: Path
    fields: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the data set; a part of a group is ``GROUP/PART``."""
        return str(self.fields["dataset"])

    @property
    def model(self) -> str:
        """Name of the model in tables."""
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
        """The run, if it is unchanged; else None."""
        run = self.fields["run"]
        path = self.path.parent / str(run["file"])
        return path if path.is_file() and sha256_file(path) == run["sha256"] else None

    @property
    def data(self) -> dict[str, str]:
        """Fingerprints of corpus, queries and judgments."""
        return {part: self.fields["fingerprints"][part] for part in ("corpus", "queries", "qrels")}

    def narrowed(self, metrics: Sequence[str]) -> Evaluation:
        """Only these metrics, in this order."""
        return averaged({query: {name: row[name] for name in metrics} for query, row in self.per_query.items()})

    def differs(self, identity: Identity) -> str:
        """Why it is not the result of ``identity``; "" if it is."""
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
        self._root = workspace.root
        self._benchmark = normal(benchmark)
        self._model = normal(model)
        self.folder = workspace.root / FOLDER / folder_name(benchmark) / folder_name(model)

    def check(self) -> None:
        """Raise ``UserError`` if the folder has results of another name, as on a case-insensitive file system."""
        first = _first(self.folder)
        if first is None:
            return
        for own, found in ((self._model, first.model), (self._benchmark, str(first.fields.get("benchmark", "")))):
            if found and normal(found) != own:
                raise UserError(f"{self.folder} has the results of {found!r}: move it away to evaluate {own!r}")

    def path(self, dataset: str) -> Path:
        """The path of a data set's result; a part of a group is in the group's folder."""
        *groups, name = map(folder_name, dataset.split("/"))
        return self.folder.joinpath(*groups, f"{name}.json")

    def place(self, dataset: str) -> str:
        """The result's path in the workspace, for its lock."""
        return self.path(dataset).relative_to(self._root).with_suffix("").as_posix()

    def load(self, dataset: str) -> Result | None:
        """A data set's result; None if there is no complete one."""
        return load(self.path(dataset))

    def save(self, identity: Identity, evaluation: Evaluation, run: Path, measured: Mapping[str, Any]) -> Result:
        """Write a result atomically, after its run."""
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
        """Write the results of a group beside the folder of its parts."""
        fields = {"benchmark": self._benchmark, "model": self._model, "dataset": name, **figures}
        write_atomically(self.path(name), dump(fields))


def load(path: Path) -> Result | None:
    """A result on disk; None if the file is missing or not a result."""
    if not path.is_file():
        return None
    try:
        fields = read_json(path)
    except LlaraError:
        return None
    whole = isinstance(fields, dict) and fields.keys() >= _PARTS
    return Result(path, fields) if whole else None


def kept(workspace: Workspace) -> dict[str, dict[str, Path]]:
    """Benchmark -> model -> folder of results, by their full names, which folder names may shorten.

    A folder that was renamed by hand has its new name.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted((workspace.root / FOLDER).glob("*/*")):
        if folder.is_dir() and (first := _first(folder)) is not None:
            benchmark = _own_name(folder.parent, str(first.fields.get("benchmark", folder.parent.name)))
            folders = found.setdefault(benchmark, {})
            model = _own_name(folder, first.model)
            if model not in folders or folder.name == folder_name(model):
                folders[model] = folder
    return found


def of_folder(folder: Path) -> list[Result]:
    """All results of a model on a benchmark."""
    found = (load(path) for path in sorted(folder.rglob("*.json")))
    return [result for result in found if result is not None]


def find_name(given: str, known: Collection[str]) -> str | None:
    """The name that the user means: itself, or the one with a folder of this name."""
    given = normal(given)
    return given if given in known else next((name for name in known if folder_name(name) == given), None)


def comparison_path(workspace: Workspace, benchmark: str, names: Sequence[str]) -> Path:
    """The path of a comparison's chart, without the ending."""
    folders = list(map(folder_name, names))
    # a hyphen alone would be ambiguous, as names have hyphens themselves
    joined = ("--" if any("-" in name for name in folders) else "-").join(folders)
    return workspace.root / FOLDER / folder_name(benchmark) / slug(f"compare-{joined}", NAME_BYTES)


def _first(folder: Path) -> Result | None:
    """Any result in a folder, to tell whose results it has."""
    return next((result for path in sorted(folder.rglob("*.json")) if (result := load(path)) is not None), None)


def _own_name(folder: Path, recorded: str) -> str:
    """The name recorded in a folder's results, unless the folder was renamed since."""
    recorded = normal(recorded)
    called = {folder_name(recorded), _former_folder(recorded)}
    return recorded if folder.name in called else normal(folder.name)


def _former_folder(name: str) -> str:
    """The folder name of earlier versions, which kept only ASCII letters."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:100].rstrip("-._+") or "unnamed"


def versions() -> dict[str, str]:
    """Versions of the libraries that computed the results."""
    found = {"llara": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
