"""``encode``: a collection and a model in, a vector store of the workspace out; shard by shard, resumable."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact, Build, RunSpec
from llara_cli.core.distributed import ProcessGroup
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.input_digests import input_record
from llara_cli.core.names import input_stem, slug
from llara_cli.core.protocols import Role
from llara_cli.core.workspace import Workspace
from llara_cli.cpu import give_back_memory, resident_memory
from llara_cli.data.arrow_table import Table
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import Document, passage_text, read_documents
from llara_cli.model.architecture import dtype_name
from llara_cli.model.backends import Encoded, EncoderBackend, EncoderFacts, EncoderOptions
from llara_cli.model.decoder import choose_device, choose_dtype, refuse_attention
from llara_cli.model.encoder import BATCH_TOKENS
from llara_cli.model.source import ModelSource
from llara_cli.model.speed import rough_seconds
from llara_cli.retrieval.config import EncodeConfig
from llara_cli.retrieval.shards import Shards
from llara_cli.retrieval.vector_store import IDS, STORES, TEXTS, cut, write_documents

NUMBER_BYTES = 4
"""Bytes of a token id, and of a number of a vector."""
SAMPLE = 512
"""Texts whose tokens a plan counts."""
_DERIVED_BYTES = 180
"""Most bytes of a derived name, which leaves room for suffixes."""


def recorded(config: EncodeConfig, source: ModelSource, workspace: Workspace) -> dict[str, Any]:
    """The settings of vectors in a manifest, encoded or imported."""
    narrow = {"dim": config.dim} if config.dim is not None else {}
    return narrow | {
        "as": config.role or "passage",
        "dtype": dtype_name(choose_dtype(config.dtype, choose_device())),
        "store": config.store,
        "encoder": config.encoder or source.usual_encoder,
        "shard_size": config.shard_size,
        "model": source.name,
        "source": source.argument(workspace),
    }


def default_name(source: ModelSource, path: Path, role: Role) -> str:
    """``MODEL-INPUT``, with the role if it is not ``passage``."""
    return slug(f"{slug(source.name)}-{input_stem(path)}", _DERIVED_BYTES) + ("-query" if role == "query" else "")


@dataclass(frozen=True)
class Encoding:
    """One run of ``encode``."""

    workspace: Workspace
    source: ModelSource
    collection: Path
    config: EncodeConfig
    name: str = ""
    made_for: str = "user"

    def run(self, *, restart: bool = False) -> dict[str, Any]:
        """Encode, resuming an earlier run, or return the result of a finished one.

        If several processes were launched, each encodes its own shards.
        """
        device = choose_device()
        refuse_attention(self.config.attention, device, choose_dtype(self.config.dtype, device))
        self._check_dim()
        process_group = ProcessGroup.join(device)
        with process_group.share(lambda: self._building(restart)) as build:
            if isinstance(build, Artifact):
                return self.workspace.result_again(build)
            return self._encode(build, process_group)

    @contextmanager
    def _building(self, restart: bool) -> Iterator[Build | Artifact]:
        """The artifact under construction, after its collection was checked; mistakes in it leave nothing behind."""
        name = self.name or self.default_name()
        with self.workspace.reporter.status(f"checking {self.source.name} and {self.file.name}"):
            _ = self.run_spec
        with self.workspace.build("embeddings", name, self.run_spec, restart=restart) as build:
            if isinstance(build, Build):
                self._take_in(build)
            try:
                yield build
            except UserError:
                if isinstance(build, Build) and not Shards(build.folder).begun:
                    shutil.rmtree(build.folder)
                raise

    def plan(self) -> dict[str, Any]:
        """Plan of ``run``, made without loading the weights."""
        with self.workspace.reporter.bar("reading", None, unit="texts") as bar:
            count, sample = _sampled(bar.over(read_documents(self.file, self.workspace.reporter.note)))
        self._check_dim()
        facts = self.backend.facts(self.source)
        dim = self.config.dim or facts.dim
        device = choose_device()
        dtype = choose_dtype(self.config.dtype, device)
        width = STORES[self.config.store]().nbytes
        plan: dict[str, Any] = {
            "name": self.name or self.default_name(),
            "device": str(device),
            "dtype": dtype_name(dtype),
            "parameters": facts.parameters,
            "texts": count,
            "max_length": self.max_length,
            "dim": dim,
            "shards": -(-count // self.config.shard_size),
            "disk": count * dim * width,
        }
        counted = self.backend.count_tokens(self.source, sample, self.role, self.config.max_length)
        tokens, seen = (number * count // len(sample) for number in counted) if counted else (None, None)
        if tokens is not None and seen is not None and facts.token_flops is not None:
            flops = facts.token_flops * seen
            plan |= {"tokens": tokens, "flops": flops, "expected_seconds": rough_seconds(flops, device, dtype)}
        memory = self._memory(facts, dtype, device, count, seen)
        exact = count <= len(sample) or tokens is None
        estimated: dict[str, Any] = {"estimated": [] if exact else ["tokens"]}
        return plan | {"memory": memory, "peak_memory": sum(memory.values())} | estimated

    def _memory(
        self, facts: EncoderFacts, dtype: torch.dtype, device: torch.device, count: int, seen: int | None
    ) -> dict[str, int]:
        """Peak memory in bytes by part: of the GPU if there is one, else of the machine.

        ``loading or computing``: the larger of the two, besides the weights. While a checkpoint is read it is in memory
        twice, once as cached pages of its file, which the system can free.
        """
        weights = facts.parameters * dtype.itemsize
        budget = self.config.batch_tokens or BATCH_TOKENS[device.type]
        longest = self.max_length or 0
        batch = max(longest, budget if seen is None else min(budget, seen))
        computing = (facts.token_numbers or 0) * dtype.itemsize * batch
        if device.type != "cpu":
            return {"weights": weights, "activations": computing}
        rows = 2 * min(count, self.config.shard_size)  # of a shard, and of the next one, tokenized meanwhile
        computing += rows * NUMBER_BYTES * (facts.dim + (seen or 0) // max(1, count))
        give_back_memory()
        parts = {"weights": weights, "loading or computing": max(weights, computing)}
        return parts | {"runtime": resident_memory()}

    def default_name(self) -> str:
        """``MODEL-INPUT``, with the role where it is not the usual one."""
        return default_name(self.source, self.collection, self.role)

    @property
    def role(self) -> Role:
        """Role of the texts."""
        return self.config.role or "passage"

    @cached_property
    def file(self) -> Path:
        """The file to read; in a BEIR folder its corpus, or its queries for the role ``query``."""
        if not self.collection.is_dir():
            return self.collection
        folder = BeirFolder(self.collection)
        return folder.queries if self.role == "query" else folder.corpus

    @cached_property
    def backend(self) -> type[EncoderBackend]:
        """The encoder's class. Raises ``UserError`` if it is unknown or not installed."""
        found: type[EncoderBackend] = registry.load("encoder", self.config.encoder or self.source.usual_encoder)
        return found

    @cached_property
    def max_length(self) -> int | None:
        """Total tokens of a sequence; None if the model has no limit."""
        return self.backend.choose_length(self.source, self.config.max_length)

    @cached_property
    def run_spec(self) -> RunSpec:
        """Settings and inputs that identify the run."""
        settings = recorded(self.config, self.source, self.workspace) | {"max_length": self.max_length}
        return RunSpec(settings, [input_record(self.file)], {"model": self.source.fingerprint()})

    def _encode(self, build: Build, process_group: ProcessGroup) -> dict[str, Any]:
        texts, shards, size = Table(build.folder / TEXTS), Shards(build.folder), self.config.shard_size
        mine = range(process_group.rank, -(-len(texts) // size), process_group.size)
        left = [number for number in mine if number not in shards]
        encoder = self.load_encoder()
        started = time.monotonic()
        dim = self.config.dim or encoder.dim
        total, waiting = (sum(_rows_in(texts, number, size) for number in numbers) for numbers in (mine, left))
        with self.workspace.reporter.bar(self._doing, total, unit="texts") as bar:
            bar.advance(total - waiting)
            passages = (_passages(texts.rows(number * size, (number + 1) * size)) for number in left)
            vectors = encoder.encode_each(passages, self.role, bar.advance)
            for number, encoded in zip(left, vectors, strict=True):
                shards.add(number, self._checked(encoded), self.config.store)
        process_group.wait()
        seconds = time.monotonic() - started
        return self._finish(build, shards, len(texts), dim, seconds) if process_group.leads else {}

    @property
    def _doing(self) -> str:
        return "encoding queries" if self.role == "query" else "encoding passages"

    def _take_in(self, build: Build) -> None:
        """Check the whole collection and copy ids and texts, once, before any weight is loaded."""
        if (build.folder / IDS).exists():
            return
        with build.staging() as staging:
            with self.workspace.reporter.bar("reading", None, unit="texts") as bar:
                write_documents(staging, bar.over(read_documents(self.file, self.workspace.reporter.note)))
            build.open_folder()
            (staging / TEXTS).replace(build.folder / TEXTS)
            (staging / IDS).replace(build.folder / IDS)

    def load_encoder(self) -> EncoderBackend:
        options = EncoderOptions(
            dtype=self.config.dtype,
            query_length=self.max_length if self.role == "query" else None,
            passage_length=self.max_length if self.role == "passage" else None,
            batch_tokens=self.config.batch_tokens,
            layout=self.config.layout,
            attention=self.config.attention,
            compile=self.config.compile,
            note=self.workspace.reporter.warn_once,
        )
        with self.workspace.reporter.status(f"loading {self.source.name}"):
            return self.backend.load(self.source, options)

    def _checked(self, encoded: Encoded) -> Encoded:
        if not np.isfinite(encoded.vectors).all():
            raise LlaraError(f"{self.source.name} gave NaN or infinite vectors; try `dtype='fp32'` or bf16")
        return replace(encoded, vectors=cut(encoded.vectors, self.config.dim))

    def _check_dim(self) -> None:
        """Raise ``UserError`` for more dimensions than the model has; warn of a number that it was not trained for."""
        backend, dim = self.backend, self.config.dim
        if dim is None:
            return
        if dim > (width := backend.facts(self.source).dim):
            raise UserError(f"`dim={dim}` is above the model's width of {width}")
        if dim not in (width, *self.source.recipe.dims):
            trained = ", ".join(map(str, self.source.recipe.dims)) or "its full width only"
            self.workspace.reporter.warn(
                f"{self.source.name} was trained for {trained} (`dims` of llara finetune), not for {dim}"
            )

    def _finish(self, build: Build, shards: Shards, count: int, dim: int, seconds: float) -> dict[str, Any]:
        totals = shards.totals()
        if totals["empty"]:
            self.workspace.reporter.warn(f"{totals['empty']} of {count} texts are empty: encoded as the bare prompt")
        if totals["cut"]:
            cut_texts = f"{totals['cut']} of {count} texts"
            self.workspace.reporter.note(f"{cut_texts} are longer than {self.max_length} tokens and were cut")
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


def encoded(encoding: Encoding, made_for: str) -> Artifact:
    """The embeddings of an equal run, whatever their name; encoded now if there are none, or only damaged ones."""
    workspace = encoding.workspace
    if made := workspace.find_equal("embeddings", encoding.run_spec):
        return made
    name = f"{encoding.default_name()}-{encoding.run_spec.fingerprint[:8]}"
    replace(encoding, name=name, made_for=made_for).run(restart=workspace.is_damaged("embeddings", name))
    return workspace.get("embeddings", name)


def _sampled(documents: Iterator[Document]) -> tuple[int, list[str]]:
    """Number of documents, and a sample of their passages, drawn evenly from all."""
    draw, sample, count = random.Random(0), [], 0
    for count, document in enumerate(documents, 1):
        if count <= SAMPLE:
            sample.append(document.passage)
        elif (place := draw.randrange(count)) < SAMPLE:
            sample[place] = document.passage
    return count, sample


def _rows_in(texts: Table, shard: int, size: int) -> int:
    return min(size, len(texts) - shard * size)


def _passages(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [passage_text(row["title"], row["text"]) for row in rows]
