"""SHA-256 digests of input files: computed once while a file stays the same, in later processes too if it is large."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
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

    Args:
        stores: JSON files, one per workspace, where the digests of large files are kept; none: they last as long as the
            process.
    """

    def __init__(self, *stores: Path, large: int = LARGE, fresh_seconds: float = FRESH_SECONDS) -> None:
        self._stores = list(stores)
        self._large, self._fresh_seconds = large, fresh_seconds
        self._known: dict[str, _Entry] = {}

    def keep_in(self, store: Path) -> None:
        """Keep the digests that are computed from now on in this store, too, and use those that are there."""
        if store not in self._stores:
            self._stores.append(store)

    def of(self, path: Path) -> str:
        """Hex digest of a file. Raises ``OSError`` if it cannot be read."""
        name, status = str(path.resolve()), path.stat()
        state = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        keep = status.st_size >= self._large
        remembered = self._remembered(name, keep)
        entry = next((each for each in remembered if each is not None and each[0] == state), None)
        if entry is None:
            entry = (state, sha256_file(path))
            settled = time.time() - max(status.st_mtime, status.st_ctime) >= self._fresh_seconds
            if not settled:
                return entry[1]
            if keep:
                for store in self._stores:
                    _add(store, name, entry)
        self._known[name] = entry
        return entry[1]

    def _remembered(self, name: str, keep: bool) -> Iterator[_Entry | None]:
        """What is known of a file: in memory, and then in the stores, read one after the other as far as needed."""
        yield self._known.get(name)
        if keep:
            for store in self._stores:
                yield _read(store).get(name)


def _read(store: Path) -> dict[str, _Entry]:
    """What is in a store; nothing where it is missing or damaged: it is only a cache."""
    try:
        stored: Any = json.loads(store.read_text(encoding="utf-8"))
        return {str(name): (list(state), str(digest)) for name, (state, digest) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _add(store: Path, name: str, entry: _Entry) -> None:
    # if it cannot be written, as in a read-only workspace, the next process hashes again
    if store.parent.parent.is_dir():
        with suppress(OSError):
            store.parent.mkdir(exist_ok=True)
            write_atomically(store, json.dumps(_read(store) | {name: entry}, indent=1))


_digests = InputDigests()


def keep_digests(store: Path) -> None:
    """Keep the digests of large files that are computed from now on in ``store``, and use those that are there.

    A program that opens several workspaces keeps them in each: a digest does not depend on who needs it.
    """
    _digests.keep_in(store.absolute())


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
