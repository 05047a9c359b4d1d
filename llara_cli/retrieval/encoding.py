"""The stage ``encode``: a collection and a model in, a vector store in the workspace out; shard by shard, resumable."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llara_cli import registry
from llara_cli.artifacts import (
    Artifact,
    Blueprint,
    Build,
    atomic_file,
    input_record,
    input_stem,
    slug,
    write_atomically,
)
from llara_cli.console import Bar, Console, LlaraError, UserError
from llara_cli.data.collection import BeirFolder, Document, read_documents
from llara_cli.data.table import Table, write_table
from llara_cli.model.backbone import choose_device, choose_dtype, dtype_name
from llara_cli.model.source import ModelSource
from llara_cli.protocols import Encoded, EncoderBackend, EncoderOptions, Role
from llara_cli.retrieval.store import IDS, TEXTS, shard_name
from llara_cli.settings import refuse_nonpositive
from llara_cli.workspace import Workspace, told_again

_SCHEMA = pa.schema([("title", pa.string()), ("text", pa.string())])
_PROGRESS = "shards.json"


@dataclass(frozen=True)
class EncodeSettings:
    """``llara encode``; ``max_length`` None: 512, limited to the model's positions."""

    role: Role = "passage"
    max_length: int | None = None
    dtype: str = "auto"
    store: str = "fp32"
    encoder: str = "torch"
    batch_tokens: int | None = None
    shard_size: int = 4096

    def check(self) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        if self.role not in ("query", "passage"):
            raise UserError(f"--as must be passage or query, not {self.role!r}")
        if self.store not in ("fp32", "fp16"):
            raise UserError(f"--store must be fp32 or fp16, not {self.store!r}")
        for name in ("max_length", "batch_tokens", "shard_size"):
            refuse_nonpositive(f"--{name.replace('_', '-')}", getattr(self, name))


@dataclass(frozen=True)
class Encoding:
    """One run of ``encode``."""

    workspace: Workspace
    console: Console
    source: ModelSource
    collection: Path
    settings: EncodeSettings
    name: str = ""
    made_for: str = "user"

    def run(self, *, restart: bool = False) -> dict[str, Any]:
        """Encode, or take up where an earlier run stopped, or give the finished run's result again."""
        self.settings.check()
        _ = self.backend
        name = self.name or self.derived_name()
        with self.workspace.build("embeddings", name, self.blueprint, restart=restart) as build:
            if isinstance(build, Artifact):
                return told_again(self.console, build)
            return self._encode(build)

    def plan(self) -> dict[str, Any]:
        """What ``run`` would do, without loading the weights."""
        count = sum(1 for _ in read_documents(self.file))
        facts = self.backend.facts(self.source)
        device = choose_device()
        dtype = choose_dtype(self.settings.dtype, device)
        width = 2 if self.settings.store == "fp16" else 4
        return {
            "name": self.name or self.derived_name(),
            "device": str(device),
            "dtype": dtype_name(dtype),
            "parameters": facts.parameters,
            "texts": count,
            "max_length": self.max_length,
            "dim": facts.dim,
            "shards": -(-count // self.settings.shard_size),
            "disk": count * facts.dim * width,
            "memory": facts.parameters * dtype.itemsize,
        }

    def derived_name(self) -> str:
        """``MODEL-INPUT``, with the role where it is not the usual one."""
        role = "-query" if self.settings.role == "query" else ""
        return f"{slug(self.source.name)}-{input_stem(self.collection)}{role}"

    @cached_property
    def file(self) -> Path:
        """The file to read: of a BEIR folder the corpus, or for queries its queries."""
        if not self.collection.is_dir():
            return self.collection
        folder = BeirFolder(self.collection)
        return folder.queries if self.settings.role == "query" else folder.corpus

    @cached_property
    def backend(self) -> type[EncoderBackend]:
        """The encoder's class. Raises ``UserError`` where it is unknown or not installed."""
        found: type[EncoderBackend] = registry.load("encoder", self.settings.encoder)
        return found

    @cached_property
    def max_length(self) -> int | None:
        """Total tokens of a sequence; None where the model has no limit."""
        return self.backend.choose_length(self.source, self.settings.max_length)

    @cached_property
    def blueprint(self) -> Blueprint:
        """What makes an equal run."""
        settings = {
            "as": self.settings.role,
            "max_length": self.max_length,
            "dtype": dtype_name(choose_dtype(self.settings.dtype, choose_device())),
            "store": self.settings.store,
            "encoder": self.settings.encoder,
            "shard_size": self.settings.shard_size,
            "model": self.source.name,
            "source": self.source.argument(self.workspace),
        }
        return Blueprint(settings, [input_record(self.file)], {"model": self.source.fingerprint()})

    def _encode(self, build: Build) -> dict[str, Any]:
        self._take_in(build)
        texts = Table(build.folder / TEXTS)
        encoder = self._load()
        shards = _Shards(build.folder)
        started = time.monotonic()
        with self.console.bar(
            "encoding queries" if self.settings.role == "query" else "encoding passages", len(texts), unit="texts"
        ) as bar:
            for number, start in enumerate(range(0, len(texts), self.settings.shard_size)):
                rows = texts.rows(start, start + self.settings.shard_size)
                if number in shards:
                    bar.advance(len(rows))
                else:
                    passages = [Document("", row["title"], row["text"]).passage for row in rows]
                    shards.add(number, self._encode_shard(encoder, passages, bar), self.settings.store)
        return self._finish(build, shards, len(texts), encoder.dim, time.monotonic() - started)

    def _take_in(self, build: Build) -> None:
        """Check the whole collection and copy ids and texts, before any weight is loaded; once."""
        if (build.folder / IDS).exists():
            return
        staging = build.target.with_name(f".{build.name}.staging")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with (staging / IDS).open("w", encoding="utf-8", newline="\n") as ids:
                write_table(staging / TEXTS, _SCHEMA, _rows(read_documents(self.file), ids))
            build.open_folder()
            (staging / TEXTS).replace(build.folder / TEXTS)
            (staging / IDS).replace(build.folder / IDS)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _load(self) -> EncoderBackend:
        options = EncoderOptions(
            dtype=self.settings.dtype,
            query_length=self.max_length if self.settings.role == "query" else None,
            passage_length=self.max_length if self.settings.role == "passage" else None,
            batch_tokens=self.settings.batch_tokens,
        )
        return self.backend.load(self.source, options)

    def _encode_shard(self, encoder: EncoderBackend, passages: list[str], bar: Bar) -> Encoded:
        encoded = encoder.encode(passages, self.settings.role, bar.advance)
        if not np.isfinite(encoded.vectors).all():
            raise LlaraError(f"{self.source.name} gave NaN or infinite vectors; try --dtype fp32 or bf16")
        return encoded

    def _finish(self, build: Build, shards: _Shards, count: int, dim: int, seconds: float) -> dict[str, Any]:
        totals = shards.totals()
        if totals["empty"]:
            self.console.warn(f"{totals['empty']} of {count} texts are empty: encoded as the bare prompt")
        if totals["cut"]:
            self.console.note(f"{totals['cut']} of {count} texts are longer than {self.max_length} tokens and were cut")
        shards.discard()
        result = {
            "name": build.name,
            "path": str(build.target),
            "count": count,
            "dim": dim,
            "tokens": totals["tokens"],
            "seconds": round(seconds, 3),
            "model": self.source.name,
        }
        build.finish({"count": count, "dim": dim, **totals}, result, self.made_for)
        return result


def _rows(documents: Iterator[Document], ids: Any) -> Iterator[dict[str, str]]:
    for document in documents:
        ids.write(document.id + "\n")
        yield {"title": document.title, "text": document.text}


class _Shards:
    """Finished shards of a build: a shard counts once its vectors lie on disk and its line is in the progress file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / _PROGRESS
        self._done: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, number: int) -> bool:
        return str(number) in self._done and (self._folder / shard_name(number)).is_file()

    def add(self, number: int, encoded: Encoded, store: str) -> None:
        """Write a shard and then the progress file, each atomically."""
        with atomic_file(self._folder / shard_name(number)) as file:
            np.save(file, encoded.vectors.astype(np.float16 if store == "fp16" else np.float32), allow_pickle=False)
        self._done[str(number)] = {"tokens": encoded.tokens, "cut": encoded.cut, "empty": encoded.empty}
        write_atomically(self._folder / _PROGRESS, json.dumps(self._done))

    def totals(self) -> dict[str, int]:
        """Text tokens, texts cut and empty texts over all shards."""
        return {key: sum(shard[key] for shard in self._done.values()) for key in ("tokens", "cut", "empty")}

    def discard(self) -> None:
        """Remove what only an unfinished build needs."""
        (self._folder / _PROGRESS).unlink(missing_ok=True)
