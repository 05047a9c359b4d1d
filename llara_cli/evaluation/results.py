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
        """Fingerprints of corpus, queries and judgments."""
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
        self._root = workspace.root
        self._benchmark = normal(benchmark)
        self._model = normal(model)
        self.folder = workspace.root / FOLDER / folder_name(benchmark) / folder_name(model)

    def check(self) -> None:
        """Raise ``UserError`` where the folder has results of another name, as where case does not tell names apart."""
        first = _first(self.folder)
        if first is None:
            return
        for own, found in ((self._model, first.model), (self._benchmark, str(first.fields.get("benchmark", "")))):
            if found and normal(found) != own:
                raise UserError(f"{self.folder} holds the results of {found!r}: move it away to measure {own!r}")

    def path(self, dataset: str) -> Path:
        """Where a data set's result is; a part of a group lies in the group's folder."""
        *groups, name = map(folder_name, dataset.split("/"))
        return self.folder.joinpath(*groups, f"{name}.json")

    def place(self, dataset: str) -> str:
        """The result's place in the workspace, for its lock."""
        return self.path(dataset).relative_to(self._root).with_suffix("").as_posix()

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


def kept(workspace: Workspace) -> dict[str, dict[str, Path]]:
    """Benchmark -> model -> folder with results, by their own names, of which a folder's may be a short form.

    A folder that was renamed by hand goes by its new name.
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
    """Every result of a model on a benchmark."""
    found = (load(path) for path in sorted(folder.rglob("*.json")))
    return [result for result in found if result is not None]


def find_name(given: str, known: Collection[str]) -> str | None:
    """The name that the user means: itself, or the one whose folder is called so."""
    given = normal(given)
    return given if given in known else next((name for name in known if folder_name(name) == given), None)


def comparison_path(workspace: Workspace, benchmark: str, names: Sequence[str]) -> Path:
    """Where a comparison is drawn, without the ending."""
    folders = list(map(folder_name, names))
    # a hyphen alone would not tell where a name ends that has some itself
    joined = ("--" if any("-" in name for name in folders) else "-").join(folders)
    return workspace.root / FOLDER / folder_name(benchmark) / slug(f"compare-{joined}", NAME_BYTES)


def _first(folder: Path) -> Result | None:
    """A result in a folder, which tells whose they are."""
    return next((result for path in sorted(folder.rglob("*.json")) if (result := load(path)) is not None), None)


def _own_name(folder: Path, recorded: str) -> str:
    """What the results in a folder say that they are of, unless the folder was called otherwise since."""
    recorded = normal(recorded)
    called = {folder_name(recorded), _former_folder(recorded)}
    return recorded if folder.name in called else normal(folder.name)


def _former_folder(name: str) -> str:
    """The folder that earlier versions had for a name, which kept ASCII letters only."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:100].rstrip("-._+") or "unnamed"


def versions() -> dict[str, str]:
    """What computed the figures."""
    found = {"llara": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
