"""Artifacts: what one is, its manifest and checksums, and how it is finished in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from llara_cli import __version__
from llara_cli.core.errors import FULL, LlaraError

Kind = Literal["models", "embeddings", "indexes", "mined", "datasets"]
KINDS: tuple[Kind, ...] = ("models", "embeddings", "indexes", "mined", "datasets")
MANIFEST, RUN, PENDING = "manifest.json", "run.json", "building.json"
_PART = ".part"
"""Ending of a file that is being written."""
_UNHASHED = {MANIFEST, RUN, PENDING, "history.jsonl", "loss.png", "dev.jsonl"}
_PASSING = {"checkpoint", ".checkpoint.part", ".checkpoint.old", "best", ".best.part", ".best.old"}
"""Folders that are removed soon after an artifact is finished."""
_PARTS = ("settings", "parents", "counts", "files")
"""Keys of every manifest."""
_CHUNK = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of the workspace that takes the place of ``path`` when all is written, and vanishes when it is not.

    ``open_output`` writes what the user names, where links, pipes, permissions and other programs' files matter. Here
    the name aside is fixed, so that the next run replaces what a kill left, and an ``OSError`` is raised as it is.
    """
    aside = path.with_name(path.name + _PART)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)  # errors of writes do not name the file
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as file:
        # a file name that is not UTF-8 has lone surrogates in it: written as \udcXX, which JSON reads back alike
        file.write(text.encode(errors="backslashreplace"))


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file's bytes; ``progress`` is called with the number of new bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def dump(data: Mapping[str, Any]) -> str:
    """The JSON form of manifests: equal data give equal bytes."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class RunSpec:
    """What makes two runs equal.

    ``settings`` are JSON values, ``inputs`` name and sha256 of files, ``parents`` name -> fingerprint.
    """

    settings: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]] = ()
    parents: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plain JSON form, as in manifests."""
        plain = {
            "settings": dict(self.settings),
            "inputs": [dict(item) for item in self.inputs],
            "parents": dict(self.parents),
        }
        loaded: dict[str, Any] = json.loads(json.dumps(plain))
        return loaded

    @property
    def fingerprint(self) -> str:
        """Identifies settings, inputs and parents."""
        return hashlib.sha256(dump(self.as_json()).encode(errors="backslashreplace")).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    kind: Kind
    name: str
    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, read once.

        Raises ``LlaraError`` if the file does not hold what every manifest holds.
        """
        made = read_json(self.path / MANIFEST)
        if not isinstance(made, dict) or not all(isinstance(made.get(part), dict) for part in _PARTS):
            raise LlaraError(f"{self.path / MANIFEST}: damaged: {', '.join(_PARTS)} must be in it")
        return made

    @cached_property
    def run(self) -> dict[str, Any]:
        """When and where it was made, and the result then printed; read once."""
        return read_json(self.path / RUN) if (self.path / RUN).exists() else {}

    @property
    def result(self) -> dict[str, Any]:
        """The result that was printed when the artifact was made."""
        run = self.run
        if "result" not in run:
            raise LlaraError(f"{self.path / RUN} is missing or damaged; `restart=True` builds the artifact anew")
        return {**run["result"], **({"path": str(self.path)} if "path" in run["result"] else {})}

    @property
    def is_users_own(self) -> bool:
        """Whether the user made it, not a job that needed it on the way."""
        return bool(self._log.get("made_for", "user") == "user")

    @property
    def finished(self) -> float:
        """When it was finished, in seconds since 1970; 0 if ``run.json`` does not say."""
        finished = self._log.get("finished")
        return float(finished) if isinstance(finished, int | float) else -math.inf

    @property
    def _log(self) -> dict[str, Any]:
        """``run``, or nothing where it is damaged."""
        try:
            return self.run
        except LlaraError:
            return {}

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest: equal runs have equal fingerprints."""
        return sha256_file(self.path / MANIFEST)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return size_on_disk(self.path)


@dataclass
class Build:
    """An artifact under construction in ``folder``; ``finish`` turns it into an artifact."""

    kind: Kind
    name: str
    run_spec: RunSpec
    folder: Path
    target: Path
    started: float = field(default_factory=time.time)

    def open_folder(self) -> Path:
        """Create the folder with a note of what is being built in it; what an earlier run left there stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PENDING).exists():
            write_atomically(self.folder / PENDING, dump(self.run_spec.as_json()))
        return self.folder

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A temporary folder beside the artifact's, for files that must be moved into it all at once."""
        folder = emptied(self.target.with_name(f".{self.name}.staging"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(
        self,
        counts: Mapping[str, Any],
        result: Mapping[str, Any],
        made_for: str = "user",
        execution: Mapping[str, Any] | None = None,
        measured: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Write ``run.json`` and, last, the manifest; then move the folder to its place if it was built aside.

        ``made_for``: ``user``, or the job that needed the artifact on the way. ``execution``: settings that change the
        artifact by rounding at most: runs that differ in them alone are equal. ``measured``: measurements of this run,
        for ``run.json``.
        """
        run = {"result": dict(result), "started": self.started, "finished": time.time(), "host": platform.node()}
        run |= {"made_for": made_for, "versions": {"llara": __version__}, **(measured or {})}
        write_atomically(self.folder / RUN, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        manifest = {"kind": self.kind, "version": 1, "name": self.name, "counts": dict(counts)}
        manifest |= self.run_spec.as_json() | {"files": self._checksums()}
        manifest |= {"execution": dict(execution)} if execution else {}
        self._settle()
        write_atomically(self.folder / MANIFEST, dump(manifest))
        (self.folder / PENDING).unlink(missing_ok=True)
        sync(self.folder)
        if self.folder != self.target:
            swap(self.folder, self.target)
            sync(self.target.parent)
        return Artifact(self.kind, self.name, self.target)

    def _settle(self) -> None:
        """Give all files one mode and flush them to disk, so that a manifest never names files that a power cut takes.

        The mode is what the umask gives a new file: some libraries write through a private temporary file.
        """
        usual = (self.folder / RUN).stat().st_mode & 0o777
        folders = {self.folder}
        for file in _lasting_files(self.folder):
            if file.stat().st_mode & 0o777 != usual:
                with suppress(PermissionError):  # a file of another user, linked to here
                    file.chmod(usual)
            sync(file)
            folders |= {folder for folder in file.parents if self.folder in folder.parents}
        for folder in folders:
            sync(folder)

    def _checksums(self) -> dict[str, dict[str, Any]]:
        return {
            file.relative_to(self.folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            for file in hashed_files(self.folder)
        }


def emptied(folder: Path) -> Path:
    """Create the folder, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def hashed_files(folder: Path) -> list[Path]:
    """The files of an artifact whose checksums its manifest holds."""
    return [file for file in _lasting_files(folder) if file.name not in _UNHASHED]


def _lasting_files(folder: Path) -> list[Path]:
    """The files of an artifact that stay."""
    every = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in every if file.parent.name not in _PASSING)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk, so that they survive a power cut."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # cannot be opened there, and need not be
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``LlaraError`` if the file is damaged."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LlaraError(f"{path}: unreadable: {error}") from error
    if not isinstance(data, dict):
        raise LlaraError(f"{path}: damaged: not a JSON object")
    return data


def may_build_at(path: Path) -> bool:
    """Whether an artifact may be built at ``path``: nothing is there, or an artifact, finished or not.

    A process killed while it began a build leaves an unfinished file of the build's settings, and nothing else.
    """
    if not path.is_dir():
        return not path.exists()
    names = {entry.name for entry in path.iterdir()}
    return not names.isdisjoint({MANIFEST, PENDING}) or names <= {PENDING + _PART}


def swap(fresh: Path, target: Path) -> None:
    """Replace the folder ``target`` by ``fresh``; ``finish_swap`` completes it after a kill in between."""
    old = old_folder(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def finish_swap(target: Path) -> None:
    """Complete a swap that was killed: put the old folder back if the new one is not in place, else remove it."""
    old = old_folder(target)
    if old.exists() and not target.exists():
        old.rename(target)
    elif (target / MANIFEST).is_file():
        shutil.rmtree(old, ignore_errors=True)


def old_folder(target: Path) -> Path:
    """The path of the old artifact while a new one takes its place."""
    return target.with_name(f".{target.name}.old")
