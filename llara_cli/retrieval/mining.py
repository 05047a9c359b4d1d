"""The stage ``mine``: hard negatives for training rows, from what an index finds for their queries."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

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
from llara_cli.console import Console, UserError
from llara_cli.data.collection import BeirFolder, Document, read_documents
from llara_cli.data.mined_rows import output_suffix, with_negatives, write_rows
from llara_cli.data.training_rows import TrainingRow, read_raw_rows, training_files
from llara_cli.retrieval.bm25 import Bm25
from llara_cli.retrieval.ranking import RowRanking
from llara_cli.retrieval.searching import Searching
from llara_cli.settings import refuse_nonpositive
from llara_cli.workspace import Workspace, told_again

BLOCK = 512
"""Queries that are searched together; what a kill can cost."""
_BLOCKS = "blocks"


@dataclass(frozen=True)
class MineSettings:
    """``llara mine``.

    Attributes:
        depth: hits of a query that are looked at.
        per_query: negatives drawn from them.
        skip_top: of the hits that are no positives, so many are left out at the top.
        margin: a negative scores at least this much below the best positive; None: whatever it scores.
    """

    depth: int = 200
    per_query: int = 15
    skip_top: int = 0
    margin: float | None = None
    seed: int = 42
    query_length: int | None = None

    def check(self) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        refuse_nonpositive("--depth", self.depth)
        refuse_nonpositive("--per-query", self.per_query)
        refuse_nonpositive("--query-length", self.query_length)
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must lie between 0 and {2**31 - 1}, not {self.seed}")
        if self.skip_top < 0:
            raise UserError(f"--skip-top must not be negative, not {self.skip_top}")
        if self.skip_top + self.per_query > self.depth:
            raise UserError(
                f"--depth {self.depth} leaves no room for --per-query {self.per_query} after --skip-top {self.skip_top}"
            )


class Finder(Protocol):
    """What queries are put to."""

    name: str
    parents: dict[str, str]
    searched: dict[str, str]

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """The k best of each query: id, score, row."""

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """How each row's best positive scores. Raises ``UserError`` where the finder cannot tell."""

    def document(self, row: int) -> Document:
        """The text behind a row."""


class DenseFinder:
    """An index of the workspace."""

    def __init__(self, searching: Searching) -> None:
        self._searching = searching
        self.name = searching.source.name
        self.searched = {"index": searching.index.name}
        self.parents = {"index": searching.index.fingerprint, "model": searching.source.fingerprint()}

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """Nearest vectors."""
        return self._searching.rank(queries, k)

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """Cosine of each query and the nearest of its positives."""
        queries = self._searching.embed([row.query for row in rows], "query")
        passages = self._searching.embed([text for row in rows for text in row.positives], "passage")
        ends = np.cumsum([len(row.positives) for row in rows])[:-1]
        parts = zip(queries, np.split(passages, ends), strict=True)
        return [float((part @ query).max()) for query, part in parts]

    def document(self, row: int) -> Document:
        """From the embeddings behind the index."""
        members = self._searching.members
        text = members.text(row)
        return Document(members.ids[row], text["title"], text["text"])


class Bm25Finder:
    """BM25 over a corpus, which is held in memory."""

    name = "bm25"

    def __init__(self, corpus: Path) -> None:
        file = BeirFolder(corpus).corpus if corpus.is_dir() else corpus
        self.parents = {"corpus": str(input_record(file)["sha256"])}
        self.searched = {"corpus": file.name}
        self._file = file

    @cached_property
    def _documents(self) -> list[Document]:
        return list(read_documents(self._file))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {document.id: row for row, document in enumerate(self._documents)}

    @cached_property
    def _index(self) -> Bm25:
        return Bm25([document.id for document in self._documents], [document.passage for document in self._documents])

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """Documents that share words."""
        return ([(name, score, self._rows[name]) for name, score in hits] for hits in self._index.search(queries, k))

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """BM25 scores only what is in its corpus, which a positive need not be."""
        raise UserError("--margin compares cosines: mine with a dense model, not with bm25")

    def document(self, row: int) -> Document:
        """From memory."""
        return self._documents[row]


def choose_negatives(
    row: TrainingRow, hits: RowRanking, finder: Finder, settings: MineSettings, seed: Sequence[int], best: float | None
) -> list[int]:
    """Rows of the index, in the order of their ranks: no positive, by id or by text, nor the query itself.

    ``best``: the score of the best positive, where there is a margin. Of those left after ``skip_top``,
    ``per_query`` are drawn by ``seed``.
    """
    ids, texts = set(row.positive_ids), {*row.positives, row.query}
    limit = np.inf if best is None or settings.margin is None else best - settings.margin
    left = [
        place
        for name, score, place in hits
        if name not in ids and score <= limit and finder.document(place).passage not in texts
    ][settings.skip_top :]
    if len(left) <= settings.per_query:
        return left
    draw = np.random.default_rng(list(seed)).choice(len(left), settings.per_query, replace=False)
    return [left[place] for place in sorted(draw)]


@dataclass(frozen=True)
class Mining:
    """One run of ``mine``."""

    workspace: Workspace
    console: Console
    train: Path
    finder: Finder
    settings: MineSettings
    name: str = ""

    def run(self, *, output: Path | None = None, restart: bool = False) -> dict[str, Any]:
        """Mine, or take up where an earlier run stopped, or give the finished run's result again.

        ``output``: where the rows are copied to. Raises ``UserError`` where another file lies there, unless
        ``restart`` is asked for; a training file is never overwritten.
        """
        self.settings.check()
        if output is not None:
            self._check_output(output, restart)
        with self.workspace.build("mined", self.artifact_name, self.blueprint, restart=restart) as build:
            result = told_again(self.console, build) if isinstance(build, Artifact) else self._mine(build)
            rows = self.rows_file
            if output is not None:
                self._copy(rows, output)
        return {**result, "output": str(output or rows)}

    @property
    def rows_file(self) -> Path:
        """The finished artifact's rows."""
        return self.workspace.root / "mined" / self.artifact_name / f"rows{output_suffix(self.train)}"

    @cached_property
    def artifact_name(self) -> str:
        """``MODEL-INPUT`` unless named."""
        return self.name or f"{slug(self.finder.name)}-{input_stem(self.train)}"

    @cached_property
    def blueprint(self) -> Blueprint:
        """What makes an equal run."""
        settings = asdict(self.settings) | self.finder.searched | {"model": self.finder.name}
        return Blueprint(settings, [input_record(file) for file in training_files(self.train)], self.finder.parents)

    def _mine(self, build: Build) -> dict[str, Any]:
        started = time.monotonic()
        rows = list(read_raw_rows(self.train))
        blocks = build.open_folder() / _BLOCKS
        blocks.mkdir(exist_ok=True)
        with self.console.bar("mining", len(rows), unit="queries") as bar:
            for start in range(0, len(rows), BLOCK):
                window = [row for _, row in rows[start : start + BLOCK]]
                self._mine_block(blocks / f"{start // BLOCK:06d}.json", window, start)
                bar.advance(len(window))
        return self._finish(build, blocks, [fields for fields, _ in rows], started)

    def _mine_block(self, path: Path, rows: Sequence[TrainingRow], first: int) -> None:
        if path.exists():
            return
        best: list[float] | None = None
        if self.settings.margin is not None:
            best = self.finder.best_positives(rows)
        hits = self.finder.find([row.query for row in rows], self.settings.depth)
        chosen = [
            choose_negatives(
                row, ranking, self.finder, self.settings, (self.settings.seed, first + at), best[at] if best else None
            )
            for at, (row, ranking) in enumerate(zip(rows, hits, strict=True))
        ]
        write_atomically(path, json.dumps(chosen))

    def _finish(self, build: Build, blocks: Path, rows: Sequence[dict[str, Any]], started: float) -> dict[str, Any]:
        chosen = [found for path in sorted(blocks.glob("*.json")) for found in json.loads(path.read_text())]
        mined = zip(rows, chosen, strict=True)
        document = self.finder.document
        write_rows(
            build.folder / self.rows_file.name,
            (with_negatives(fields, [document(row) for row in found]) for fields, found in mined),
        )
        shutil.rmtree(blocks)
        sizes = [len(found) for found in chosen]
        counts = {
            "rows": len(rows),
            "negatives": sum(sizes),
            "short": sum(0 < size < self.settings.per_query for size in sizes),
            "without": sizes.count(0),
        }
        if counts["short"] or counts["without"]:
            few = (
                f"{counts['short']} rows have fewer than {self.settings.per_query} negatives, {counts['without']} none"
            )
            self.console.warn(f"{few}; a greater --depth or a smaller --margin finds more")
        seconds = round(time.monotonic() - started, 3)
        result = {"name": build.name, "path": str(build.target), **counts, "model": self.finder.name}
        result |= {"depth": self.settings.depth, "seconds": seconds}
        build.finish(counts, result)
        return result

    def _check_output(self, output: Path, restart: bool) -> None:
        if output.suffix != self.rows_file.suffix:
            raise UserError(f"{output}: rows of {self.train} are written as *{self.rows_file.suffix}")
        if not output.resolve().parent.is_dir():
            raise UserError(f"{output}: no such folder to write into")
        if output.exists() and self.train.exists() and output.samefile(self.train):
            raise UserError(f"{output} is the training file itself: choose another --output")
        same = output.is_file() and self.rows_file.is_file() and output.read_bytes() == self.rows_file.read_bytes()
        if output.exists() and not restart and not same:
            raise UserError(f"{output} exists; choose another --output, or --restart to replace it")

    def _copy(self, rows: Path, output: Path) -> None:
        with rows.open("rb") as source, atomic_file(output) as file:
            shutil.copyfileobj(source, file)
