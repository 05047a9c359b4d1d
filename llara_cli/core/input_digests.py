"""SHA-256 digests of input files: computed once while a file stays the same, in later processes too if it is large."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llara_cli.core.artifacts import sha256_file, write_atomically
from llara_cli.core.errors import UserError

LARGE = 64 << 20
"""Bytes from which on a digest is kept for later processes; smaller files are hashed in less than 0.2 seconds."""
FRESH_SECONDS = 2.0
"""A file that changed so recently is hashed again next time: the next write could leave its times as they are."""

_Entry = tuple[list[int], str]
"""Device, inode, size, and times of last write and change of a file; and its digest."""


class InputDigests:
    """Digests of files, remembered while their inodes, sizes and times stay the same.

    The time of change (``ctime``) cannot be set by programs, so that a copy in the file's place is noticed even where
    it has the old file's size and time of writing.

    Attributes:
        store: JSON file where the digests of large files are kept; None: they last as long as the process.
    """

    def __init__(self, store: Path | None = None, *, large: int = LARGE, fresh_seconds: float = FRESH_SECONDS) -> None:
        self.store = store
        self._large, self._fresh_seconds = large, fresh_seconds
        self._known: dict[str, _Entry] = {}

    def of(self, path: Path) -> str:
        """Hex digest of a file. Raises ``OSError`` if it cannot be read."""
        name, status = str(path.resolve()), path.stat()
        state = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        keep = status.st_size >= self._large
        entry = self._known.get(name) or (self._stored().get(name) if keep else None)
        if entry is None or entry[0] != state:
            entry = (state, sha256_file(path))
            settled = time.time() - max(status.st_mtime, status.st_ctime) >= self._fresh_seconds
            if not settled:
                return entry[1]
            if keep:
                self._add(name, entry)
        self._known[name] = entry
        return entry[1]

    def _stored(self) -> dict[str, _Entry]:
        """What is in the store; nothing where it is missing or damaged: it is only a cache."""
        if self.store is None:
            return {}
        try:
            stored: Any = json.loads(self.store.read_text(encoding="utf-8"))
            return {str(name): (list(state), str(digest)) for name, (state, digest) in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _add(self, name: str, entry: _Entry) -> None:
        # if it cannot be written, as in a read-only workspace, the next process hashes again
        if self.store is not None and self.store.parent.parent.is_dir():
            with suppress(OSError):
                self.store.parent.mkdir(exist_ok=True)
                write_atomically(self.store, json.dumps(self._stored() | {name: entry}, indent=1))


_digests = InputDigests()


def keep_digests(store: Path) -> None:
    """Keep the digests of large files in ``store`` from now on, and use those that are there."""
    _digests.store = store


def input_digest(path: Path) -> str:
    """Hex digest of a file that is only read. Raises ``OSError`` if it cannot be read."""
    return _digests.of(path)


def input_record(path: Path) -> dict[str, Any]:
    """An input file as manifests name it. Raises ``UserError`` if it cannot be read."""
    try:
        return {"name": path.name, "sha256": input_digest(path)}
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
