"""Verifies artifacts: every file against the size and sha256 in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llara_cli.core.artifacts import MANIFEST, Artifact, hashed_files, sha256_file
from llara_cli.core.errors import LlaraError

MEGABYTE = 1_000_000


def damaged_manifests(artifacts: Iterable[Artifact]) -> dict[Path, str]:
    """Folder -> what is wrong with its manifest, for artifacts with a damaged one."""
    found = {}
    for artifact in artifacts:
        try:
            _ = artifact.manifest
        except LlaraError as error:
            problem = str(error).removeprefix(f"{artifact.path / MANIFEST}: ")
            found[artifact.path] = f"{artifact.kind}/{artifact.name}/{MANIFEST}: {problem}"
    return found


def megabytes(artifacts: Iterable[Artifact]) -> float:
    """Megabytes that ``verify`` will read, for a progress bar."""
    return sum(file.stat().st_size for artifact in artifacts for file in hashed_files(artifact.path)) / MEGABYTE


def verify(artifact: Artifact, progress: Callable[[float], None]) -> Iterator[str]:
    """``KIND/NAME/FILE: what is wrong``, a line for each file that differs from the manifest.

    ``progress`` is called with the number of megabytes just read. Raises ``LlaraError`` for a damaged manifest.
    """
    wanted = artifact.manifest["files"]
    there = {file.relative_to(artifact.path).as_posix(): file for file in hashed_files(artifact.path)}
    for name in sorted(wanted.keys() | there.keys()):
        problem = _problem(there.get(name), wanted.get(name), progress)
        if problem:
            yield f"{artifact.kind}/{artifact.name}/{name}: {problem}"


def _problem(file: Path | None, wanted: Mapping[str, Any] | None, progress: Callable[[float], None]) -> str:
    """What is wrong with a file; empty if nothing is."""
    if file is None:
        return "missing"
    try:
        size = file.stat().st_size
        if wanted is None or size != wanted["bytes"]:
            progress(size / MEGABYTE)
            return "is not in the manifest" if wanted is None else f"has {size:,} bytes, not {wanted['bytes']:,}"
        found = sha256_file(file, lambda size: progress(size / MEGABYTE))
        return "" if found == wanted["sha256"] else "its content has changed (sha256 differs)"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    except (KeyError, TypeError, ValueError):
        return "the manifest has no size and sha256 of it"
