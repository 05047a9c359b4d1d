"""``encode --from``: vectors that another tool computed become embeddings of the workspace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact, Build, RunSpec
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Role
from llara_cli.core.workspace import Workspace
from llara_cli.model.backends import EncoderBackend
from llara_cli.model.source import ModelSource
from llara_cli.pipelines.encode import default_name, recorded
from llara_cli.retrieval.config import EncodeConfig
from llara_cli.retrieval.vector_files import VectorFile
from llara_cli.retrieval.vector_store import STORES, shard_name, write_documents, write_shard

_TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3}
"""Largest difference from 1 of a normalized vector's length, from rounding to the stored dtype."""


@dataclass
class Tally:
    """Counts of vectors that were changed on import."""

    scaled: int = 0
    zero: int = 0


@dataclass(frozen=True)
class Importing:
    """One run of ``encode --from``; queries are going to be encoded with ``source``."""

    workspace: Workspace
    source: ModelSource
    file: VectorFile
    config: EncodeConfig
    name: str = ""

    def run(self, *, restart: bool = False) -> dict[str, Any]:
        """Import the whole file or nothing, or return the result of a finished run."""
        self._check()
        with self.workspace.build("embeddings", self._name, self.run_spec, restart=restart) as build:
            if isinstance(build, Artifact):
                return self.workspace.result_again(build)
            return self._import(build)

    def plan(self) -> dict[str, Any]:
        """Plan of ``run``."""
        self._check()
        width = STORES[self.config.store]().nbytes
        return {
            "name": self._name,
            "texts": self.file.count,
            "dim": self.dim,
            "shards": -(-self.file.count // self.config.shard_size),
            "disk": self.file.count * self.dim * width,
        }

    @property
    def path(self) -> Path:
        """The file of vectors."""
        return self.file.path

    @property
    def _role(self) -> Role:
        return self.config.role or "passage"

    @property
    def _encoder(self) -> str:
        return self.config.encoder or self.source.usual_encoder

    @cached_property
    def backend(self) -> type[EncoderBackend]:
        """The encoder of the queries."""
        found: type[EncoderBackend] = registry.load("encoder", self._encoder)
        return found

    @cached_property
    def dim(self) -> int:
        """The width of the model's vectors."""
        return self.backend.facts(self.source).dim

    @cached_property
    def run_spec(self) -> RunSpec:
        """Settings and inputs that identify the run."""
        settings = recorded(self.config, self.source, self.workspace) | {"imported": True}
        return RunSpec(settings, self.file.inputs, {"model": self._fingerprint})

    @cached_property
    def _fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def _name(self) -> str:
        return self.name or default_name(self.source, self.path, self._role)

    def _check(self) -> None:
        if self.config.max_length is not None or self.config.batch_tokens is not None:
            raise UserError("`max_length` and `batch_tokens` do nothing with `vectors`: no text is encoded")
        if self.file.count == 0:
            raise UserError(f"{self.path}: no vectors in it")
        self._check_origin()
        _ = self.dim

    def _check_origin(self) -> None:
        """Raise ``UserError`` if the file records another model, role or encoder than the settings."""
        origin, place = self.file.origin, self.file.origin_file
        if origin is None:
            return
        if origin.fingerprint != self._fingerprint:
            other = "which has changed since" if origin.model == self.source.name else f"not by {self.source.name!r}"
            raise UserError(f"{place} says that the vectors were made by model {origin.model!r}, {other}")
        said = {"role": (origin.role, self._role), "encoder": (origin.encoder, self._encoder)}
        for name, (recorded_value, given) in said.items():
            if recorded_value != given:
                raise UserError(f"{place} says that the vectors were made with `{name}={recorded_value}`, not {given}")

    def _import(self, build: Build) -> dict[str, Any]:
        started, tally = time.monotonic(), Tally()
        with build.staging() as staging:
            write_documents(staging, self.file.documents())
            self._write_shards(staging, tally)
            build.open_folder()
            for file in sorted(staging.iterdir()):
                file.replace(build.folder / file.name)
        return self._finish(build, tally, time.monotonic() - started)

    def _write_shards(self, folder: Path, tally: Tally) -> None:
        size, seen = self.config.shard_size, 0
        with self.workspace.reporter.bar("importing", self.file.count, unit="vectors") as bar:
            for number, shard in enumerate(_resized(self.file.blocks(self.dim, size), size)):
                vectors = self._normalized(shard, seen, tally)
                with (folder / shard_name(number)).open("wb") as file:
                    write_shard(file, vectors, self.config.store)
                seen += len(shard)
                bar.advance(len(shard))
        if seen != self.file.count:
            raise UserError(f"{self.path}: {seen} vectors, but its header says {self.file.count}")

    def _normalized(self, block: NDArray[Any], before: int, tally: Tally) -> NDArray[np.float32]:
        """Normalize (rows, dim); rows of length 1 stay the same to the bit.

        Raises ``UserError``, with the row, for a number that is NaN, infinite, missing, or too large to be squared.
        """
        wide = np.asarray(block, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.sqrt(np.square(wide).sum(axis=1))
        if not (finite := np.isfinite(lengths)).all():
            row = before + int((~finite).argmax()) + 1
            raise UserError(f"{self.path}: row {row}: NaN, infinite or huge numbers in the vector")
        zero = lengths == 0
        off = (np.abs(lengths - 1) > _TOLERANCE[self.config.store]) & ~zero
        tally.scaled += int(off.sum())
        tally.zero += int(zero.sum())
        return (wide / np.where(off, lengths, 1.0)[:, None]).astype(np.float32)

    def _finish(self, build: Build, tally: Tally, seconds: float) -> dict[str, Any]:
        count = self.file.count
        if tally.scaled:
            self.workspace.reporter.note(f"{tally.scaled} of {count} vectors were not of length 1: L2-normalized")
        if tally.zero:
            self.workspace.reporter.warn(f"{tally.zero} of {count} vectors are zero: they score 0 for every query")
        result = {
            "name": build.name,
            "path": str(build.target),
            "count": count,
            "dim": self.dim,
            "tokens": 0,
            "seconds": round(seconds, 3),
            "model": self.source.name,
        }
        counts = {"count": count, "dim": self.dim, "normalised": tally.scaled, "zero": tally.zero}
        # keys of the first release: "normalised" above, the flag below
        said_by = "--model" if self.file.origin is None else self.file.origin_file.name
        claim = {"model": self.source.name, "fingerprint": self._fingerprint, "said_by": said_by}
        build.finish(counts, result, measured={"claim": claim})
        return result


def _resized(blocks: Iterator[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """The same rows in blocks of exactly ``rows``, except the last."""
    held: list[NDArray[Any]] = []
    for block in blocks:
        held.append(block)
        while sum(map(len, held)) >= rows:
            whole = np.concatenate(held)
            yield whole[:rows]
            held = [whole[rows:]] if len(whole) > rows else []
    if held:
        yield np.concatenate(held)
