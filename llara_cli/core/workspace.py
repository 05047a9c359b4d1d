"""The workspace: artifacts, their manifests and lineage, and how one is built so that it is never half-finished.

An artifact is a folder with a ``manifest.json``, written last and atomically. The manifest says what would make an
equal run (settings, inputs, parents) and what came out (counts, checksums); what varies between equal runs (times,
host) lies beside it in ``run.json``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llara_cli.core.artifacts import (
    MANIFEST,
    PENDING,
    Artifact,
    Build,
    Kind,
    RunSpec,
    finish_swap,
    may_build_at,
    old_folder,
    read_json,
)
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.input_digests import keep_digests
from llara_cli.core.names import check_name, is_name, normal
from llara_cli.core.reporter import Reporter

CACHE = "cache"
"""Folder of files that can be made again: tokenized corpora, queries of training rows, digests of input files."""
_SWAP_SECONDS = 2
"""Seconds to wait for another process that is swapping folders: far more than two renames take."""
GATE_SECONDS = 2
"""Seconds that a command waits for `llara clean` to end, and `llara clean` for commands that are just starting."""
_LOCKS = ".locks"
_GATE = "clean"

RESUMED: tuple[Kind, ...] = ("models", "embeddings", "mined")
"""Kinds whose builds keep what is finished when they are interrupted; the others start again."""


class Workspace:
    """One directory that holds every artifact; ``reporter`` reports what jobs do in it."""

    def __init__(self, root: Path, reporter: Reporter | None = None) -> None:
        self.root = root
        self.reporter = reporter or Reporter()
        keep_digests(root / CACHE / "digests.json")

    def create(self) -> None:
        """Create the directory. Raises ``UserError`` if that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"workspace {self.root} is not a directory") from error
        except OSError as error:
            raise UserError(f"workspace {self.root}: cannot create it: {error.strerror}") from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise UserError(f"workspace {self.root}: not writable; choose another `workspace`")

    def find(self, kind: Kind, name: str) -> Artifact | None:
        """The finished artifact of that name, if there is one."""
        name = normal(name)
        if not is_name(name):
            return None
        path = self.root / kind / name
        self._mend(kind, name)
        return Artifact(kind, name, path) if (path / MANIFEST).is_file() else None

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
        """Finished artifacts, damaged ones too, oldest first by ``run.json``, as copying changes the files' times."""
        for old in (self.root / kind).glob(".*.old"):
            self._mend(kind, old.name[1:].removesuffix(".old"))
        folders = (self.root / kind).glob(f"*/{MANIFEST}")
        names = [path.parent.name for path in folders if not path.parent.name.startswith(".")]
        made = [Artifact(kind, name, self.root / kind / name) for name in names]
        return sorted(made, key=lambda artifact: (artifact.finished, artifact.name))

    def sound(self, kind: Kind) -> list[Artifact]:
        """Finished artifacts with a readable manifest, oldest first; warns once of each damaged one."""
        return [artifact for artifact in self.artifacts(kind) if self._is_sound(artifact)]

    def _is_sound(self, artifact: Artifact) -> bool:
        try:
            _ = artifact.manifest
        except LlaraError as error:
            self.reporter.warn_once(f"{error}; left out")
            return False
        try:
            _ = artifact.run
        except LlaraError as error:
            self.reporter.warn_once(f"{error}; taken for the oldest")
        return True

    def is_damaged(self, kind: Kind, name: str) -> bool:
        """Whether the finished artifact has an unreadable manifest: only a restart builds it again."""
        artifact = self.find(kind, name)
        try:
            return artifact is not None and not artifact.manifest
        except LlaraError:
            return True

    def find_equal(self, kind: Kind, run_spec: RunSpec) -> Artifact | None:
        """A finished artifact of any name made by an equal run; warns of damaged ones, and skips them."""
        wanted = run_spec.as_json()
        for artifact in self.sound(kind):
            made = artifact.manifest
            if all(made.get(part) == value for part, value in wanted.items()):
                return artifact
        return None

    def unfinished(self, kind: Kind) -> list[Path]:
        """Folders that an interrupted run left, to be resumed by the same command."""
        return sorted(path.parent for path in (self.root / kind).glob(f"*/{PENDING}"))

    @contextmanager
    def build(self, kind: Kind, name: str, run_spec: RunSpec, *, restart: bool = False) -> Iterator[Build | Artifact]:
        """Hold the artifact's lock and yield the finished artifact (equal run: nothing to do) or a ``Build``.

        Raises ``UserError`` if an artifact of that name, finished or not, has other settings, or if another process is
        building it. ``restart`` builds in a folder beside it; the old artifact stays until ``finish``.
        """
        name = check_name(name)
        target = self.root / kind / name
        with self.lock(f"{kind}/{name}"):
            finish_swap(target)
            if not may_build_at(target):
                raise UserError(f"{target} exists and is not an artifact of llara; choose another `name`")
            folder = target
            if restart:
                folder = target.with_name(f".{name}.restart")
                if not _began_equal(folder, run_spec):
                    shutil.rmtree(folder, ignore_errors=True)
            elif (target / MANIFEST).is_file():
                made = Artifact(kind, name, target)
                _refuse_difference(target, made.manifest, run_spec)
                yield made
                return
            elif (target / PENDING).is_file():
                _refuse_difference(target, read_json(target / PENDING), run_spec)
            try:
                yield Build(kind, name, run_spec, folder, target)
            except KeyboardInterrupt as interrupt:
                if kind in RESUMED and (folder / PENDING).is_file():
                    interrupt.add_note("what is finished is kept, and the same command resumes it")
                raise

    def _mend(self, kind: Kind, name: str) -> None:
        """Complete a swap that was killed (``finish_swap``).

        If another process holds the lock, it is in the middle of the swap and about to end it. A read-only workspace is
        left unchanged.
        """
        target = self.root / kind / name
        if old_folder(target).exists():
            with suppress(UserError, OSError), self.lock(f"{kind}/{name}", wait=_SWAP_SECONDS):
                finish_swap(target)

    def result_again(
        self, artifact: Artifact, why: str = "is finished already; `restart=True` builds it anew"
    ) -> dict[str, Any]:
        """The result of a finished artifact, with a note that there is nothing to do, and ``why``."""
        self.reporter.note(f"nothing to do: {artifact.kind}/{artifact.name} {why}")
        return artifact.result

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands out of the workspace. Raises ``UserError`` if one is working in it."""
        gate = _lock_file(self.root, _GATE)
        gate.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(self._taken(gate, GATE_SECONDS))
            # commands that passed the gate before it closed hold their locks by now; later ones find it closed
            for path in sorted(gate.parent.rglob("*.lock")):
                if path != gate:
                    held.enter_context(self._taken(path, 0))
            yield

    def _taken(self, path: Path, wait: float) -> AbstractContextManager[None]:
        return _held(path, wait, f"another command is working in {self.root} (it holds {path}); run this again later")

    @contextmanager
    def lock(self, place: str, wait: float = 0) -> Iterator[None]:
        """Lock ``place``, a path in the workspace; ``wait``: seconds to wait for another process.

        Raises ``UserError`` if it is still locked then, and while `llara clean` runs.
        """
        self.create()
        with lock_place(self.root, place, wait):
            yield


@contextmanager
def lock_place(root: Path, place: str, wait: float = 0) -> Iterator[None]:
    """Lock ``place`` in the workspace ``root``; ``wait``: seconds to wait for another process, endless below 0.

    Raises ``UserError`` if it is still locked then, and while `llara clean` runs.
    """
    lock = _lock_file(root, place)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _held(lock, wait, f"{place} is being built by another process"):
        # after taking the lock: `llara clean` closes the gate first, and then looks for locks that are held
        with _held(_lock_file(root, _GATE), GATE_SECONDS, f"llara clean is running in {root}; run this again later"):
            pass
        yield


def _lock_file(root: Path, place: str) -> Path:
    return root / _LOCKS / f"{place}.lock"


@contextmanager
def _held(lock: Path, wait: float, otherwise: str) -> Iterator[None]:
    """Hold a lock file. Raises ``UserError(otherwise)`` if another process still holds it after ``wait`` seconds."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(lock, timeout=wait))
        except Timeout as error:
            raise UserError(otherwise) from error
        yield


def _began_equal(folder: Path, run_spec: RunSpec) -> bool:
    """Whether this folder was left by an interrupted run with the same settings."""
    pending = folder / PENDING
    return pending.is_file() and read_json(pending) == run_spec.as_json()


def _refuse_difference(path: Path, made: Mapping[str, Any], run_spec: RunSpec) -> None:
    wanted = run_spec.as_json()
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
            " Choose another `name`, or `restart=True` to build it anew"
        )
