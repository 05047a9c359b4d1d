"""Shards of vectors under construction: each is written atomically, and computed only once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llara_cli.core.artifacts import atomic_file, read_json, sha256_file, write_atomically
from llara_cli.model.backends import Encoded
from llara_cli.retrieval.vector_store import shard_name, write_shard

_NOTES = ".shards"
_COUNTS = ("tokens", "cut", "empty")


class Shards:
    """The shards of a build, each with a JSON file of its checksum and counts.

    That file is written last: a shard counts if it has one and matches it. Several processes may write shards of one
    build.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, number: int) -> bool:
        vectors, note = self._folder / shard_name(number), self._note(number)
        return note.exists() and vectors.exists() and read_json(note)["sha256"] == sha256_file(vectors)

    @property
    def begun(self) -> bool:
        """Whether any shard is finished."""
        return (self._folder / _NOTES).exists()

    def add(self, number: int, encoded: Encoded, store: str) -> None:
        """Write a shard and then its JSON file, each atomically."""
        path = self._folder / shard_name(number)
        with atomic_file(path) as file:
            write_shard(file, encoded.vectors, store)
        note = {name: getattr(encoded, name) for name in _COUNTS} | {"sha256": sha256_file(path)}
        self._note(number).parent.mkdir(exist_ok=True)
        write_atomically(self._note(number), json.dumps(note))

    def totals(self) -> dict[str, int]:
        """Text tokens, cut texts and empty texts of all shards."""
        notes = [read_json(path) for path in (self._folder / _NOTES).glob("*.json")]
        return {name: sum(note[name] for note in notes) for name in _COUNTS}

    def discard(self) -> None:
        """Remove the JSON files, which only an unfinished build needs."""
        shutil.rmtree(self._folder / _NOTES, ignore_errors=True)

    def _note(self, number: int) -> Path:
        return self._folder / _NOTES / f"{number:05d}.json"
