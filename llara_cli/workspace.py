"""The workspace: artifacts, their manifests and lineage, and how one is built so that nothing is ever half-finished.

An artifact is a folder with a ``manifest.json``, written last and atomically. The manifest says what would make an
equal run (settings, inputs, parents) and what came out (counts, checksums); what varies between equal runs (times,
host) lies beside it in ``run.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from llara_cli import __version__
from llara_cli.console import LlaraError, UserError

Kind = Literal["models", "embeddings", "indexes"]
KINDS: tuple[Kind, ...] = ("models", "embeddings", "indexes")
MANIFEST, RUN, PENDING = "manifest.json", "run.json", "building.json"
_UNHASHED = {MANIFEST, RUN, PENDING, "history.jsonl"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_record(path: Path) -> dict[str, Any]:
    """An input file as manifests name it. Raises ``UserError`` where it cannot be read."""
    try:
        return {"name": path.name, "sha256": sha256_file(path)}
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error


def dump(data: Mapping[str, Any]) -> str:
    """The one JSON form of manifests, so that equal data give equal bytes."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def slug(text: str) -> str:
    """A name that is safe as a folder on every file system."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-._") or "unnamed"


def input_stem(path: Path) -> str:
    """What an input is called in derived names: ``wiki.v2.jsonl.gz`` -> ``wiki.v2``; a folder keeps its whole name."""
    path = path.expanduser().resolve()
    name = path.name
    if not path.is_dir():
        name = re.sub(r"\.(gz|bz2|zst)$", "", name)
        name = name.rpartition(".")[0] or name
    return slug(name)


def check_name(name: str) -> str:
    """``name`` itself. Raises ``UserError`` where it could not be one folder inside the workspace."""
    if not _NAME.fullmatch(name):
        raise UserError(f"bad name {name!r}: use letters, digits, '.', '_', '+', '-', starting with a letter or digit")
    return name


@dataclass(frozen=True)
class Blueprint:
    """What makes two runs equal.

    ``settings`` are JSON values, ``inputs`` name and sha256 of files, ``parents`` name -> fingerprint.
    """

    settings: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]] = ()
    parents: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plain JSON form, as manifests hold it."""
        plain = {
            "settings": dict(self.settings),
            "inputs": [dict(item) for item in self.inputs],
            "parents": dict(self.parents),
        }
        loaded: dict[str, Any] = json.loads(json.dumps(plain))
        return loaded


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    kind: Kind
    name: str
    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """What the artifact is. Raises ``LlaraError`` where the file is damaged."""
        return _read_json(self.path / MANIFEST)

    @property
    def run(self) -> dict[str, Any]:
        """When and where it was made, and the result that was printed."""
        return _read_json(self.path / RUN) if (self.path / RUN).exists() else {}

    @property
    def result(self) -> dict[str, Any]:
        """The result that was printed when the artifact was made."""
        found: dict[str, Any] = self.run["result"]
        return found

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest: equal runs have equal fingerprints."""
        return sha256_file(self.path / MANIFEST)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


@dataclass
class Build:
    """An artifact under construction in ``folder``; ``finish`` turns it into an artifact."""

    kind: Kind
    name: str
    blueprint: Blueprint
    folder: Path
    target: Path
    started: float = field(default_factory=time.time)

    def open_folder(self) -> Path:
        """Create the folder with the note of what is being built in it; what an earlier run left there stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PENDING).exists():
            write_atomically(self.folder / PENDING, dump(self.blueprint.as_json()))
        return self.folder

    def finish(self, counts: Mapping[str, Any], result: Mapping[str, Any], **versions: str) -> Artifact:
        """Write ``run.json`` and, last, the manifest; then move the folder to its place if it was built aside."""
        run = {"result": dict(result), "started": self.started, "finished": time.time(), "host": os.uname().nodename}
        write_atomically(self.folder / RUN, dump(run | {"versions": {"llara": __version__, **versions}}))
        manifest = {"kind": self.kind, "version": 1, "name": self.name, "counts": dict(counts)}
        manifest |= self.blueprint.as_json() | {"files": self._checksums()}
        write_atomically(self.folder / MANIFEST, dump(manifest))
        (self.folder / PENDING).unlink(missing_ok=True)
        if self.folder != self.target:
            _swap(self.folder, self.target)
        return Artifact(self.kind, self.name, self.target)

    def _checksums(self) -> dict[str, dict[str, Any]]:
        files = sorted(f for f in self.folder.rglob("*") if f.is_file() and f.name not in _UNHASHED)
        return {
            file.relative_to(self.folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            for file in files
        }


class Workspace:
    """One directory that holds every artifact."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the directory. Raises ``UserError`` where that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"workspace {self.root}: cannot create it: {error.strerror}") from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise UserError(f"workspace {self.root}: not writable; choose another with --workspace")

    def find(self, kind: Kind, name: str) -> Artifact | None:
        """The finished artifact of that name, if there is one."""
        path = self.root / kind / name
        return Artifact(kind, name, path) if _NAME.fullmatch(name) and (path / MANIFEST).is_file() else None

    def get(self, kind: Kind, name: str) -> Artifact:
        """The finished artifact of that name. Raises ``UserError`` naming those there are."""
        if found := self.find(kind, name):
            return found
        there = ", ".join(artifact.name for artifact in self.artifacts(kind)) or "none yet"
        state = "unfinished" if (self.root / kind / name).is_dir() and name else "unknown"
        raise UserError(
            f"{state} {kind.removesuffix('s').removesuffix('e')} {name!r} in {self.root}; finished: {there}"
        )

    def artifacts(self, kind: Kind) -> list[Artifact]:
        """Finished artifacts, oldest first."""
        folders = (self.root / kind).glob(f"*/{MANIFEST}")
        made = sorted((path for path in folders if not path.parent.name.startswith(".")), key=_mtime)
        return [Artifact(kind, path.parent.name, path.parent) for path in made]

    def find_equal(self, kind: Kind, blueprint: Blueprint) -> Artifact | None:
        """A finished artifact of any name that an equal run made."""
        wanted = blueprint.as_json()
        for artifact in self.artifacts(kind):
            made = artifact.manifest
            if all(made.get(part) == value for part, value in wanted.items()):
                return artifact
        return None

    def unfinished(self, kind: Kind) -> list[Path]:
        """Folders that an interrupted run left, to be resumed by the same command."""
        return sorted(path.parent for path in (self.root / kind).glob(f"*/{PENDING}"))

    @contextmanager
    def build(
        self, kind: Kind, name: str, blueprint: Blueprint, *, restart: bool = False
    ) -> Iterator[Build | Artifact]:
        """Hold the artifact's lock and give either the finished artifact (equal run: nothing to do) or a ``Build``.

        Raises ``UserError`` where an artifact of that name, finished or not, came from other settings, and where
        another process is building it. ``restart`` builds aside; the old artifact stays until ``finish``.
        """
        target = self.root / kind / check_name(name)
        with self._lock(kind, name):
            folder = target
            if restart:
                folder = target.with_name(f".{name}.restart")
                shutil.rmtree(folder, ignore_errors=True)
            elif (target / MANIFEST).is_file():
                _refuse_difference(target, _read_json(target / MANIFEST), blueprint)
                yield Artifact(kind, name, target)
                return
            elif (target / PENDING).is_file():
                _refuse_difference(target, _read_json(target / PENDING), blueprint)
            elif target.exists() and any(target.iterdir()):
                raise UserError(f"{target} exists and is not an artifact of llara; choose another --name")
            yield Build(kind, name, blueprint, folder, target)

    @contextmanager
    def _lock(self, kind: Kind, name: str) -> Iterator[None]:
        self.create()
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        try:
            with FileLock(locks / f"{kind}-{name}.lock", timeout=0):
                yield
        except Timeout as error:
            raise UserError(f"{kind}/{name} is being built by another process") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlaraError(f"{path}: unreadable: {error}") from error
    return data


def _mtime(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.parent.name


def _swap(fresh: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_difference(path: Path, made: Mapping[str, Any], blueprint: Blueprint) -> None:
    wanted = blueprint.as_json()
    differing = [
        f"{key} was {made.get(part, {}).get(key)!r}, now {wanted[part].get(key)!r}"
        for part in ("settings", "parents")
        for key in sorted(made.get(part, {}).keys() | wanted[part].keys())
        if made.get(part, {}).get(key) != wanted[part].get(key)
    ]
    if made.get("inputs", []) != wanted["inputs"]:
        differing.append("the input's content changed")
    if differing:
        raise UserError(
            f"{path} was built with other settings: {'; '.join(differing)}."
            " Choose another --name, or --restart to build it anew"
        )
