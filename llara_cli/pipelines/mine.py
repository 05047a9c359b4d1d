"""``mine``: training rows in, the same rows with hard negatives out."""

from __future__ import annotations

import filecmp
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llara_cli.core.artifacts import Artifact, Build, RunSpec, write_atomically
from llara_cli.core.config import recorded
from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_record
from llara_cli.core.names import NAME_BYTES, input_stem, slug
from llara_cli.core.output_files import check_output, is_stream, open_output
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.mined_rows import output_suffix, with_negatives, write_rows
from llara_cli.data.text_files import Note, ignore
from llara_cli.data.training_rows import TrainingRow, read_raw_rows, read_training_rows, training_files
from llara_cli.pipelines.index import index_corpus
from llara_cli.pipelines.select import chosen_encoder, model_to_use
from llara_cli.retrieval.config import EncodeConfig, MineConfig, SearchConfig
from llara_cli.retrieval.hard_negatives import (
    Bm25Candidates,
    CandidateSource,
    IndexCandidates,
    KnownPositives,
    choose_negatives,
    known_positives,
)
from llara_cli.retrieval.searcher import Searcher

BM25 = "bm25"
"""The value of ``model`` for BM25."""
BLOCK = 512
"""Queries that are searched together, and lost at most by a kill."""
_BLOCKS = "blocks"


def check_request(
    workspace: Workspace, train: Path, corpus: Path | None, output: Path | None, *, restart: bool
) -> None:
    """Raise ``UserError`` for mistakes that would otherwise show after much work, such as encoding ``corpus``.

    A file that is a copy of rows mined in this workspace may turn out to be the output wanted.
    """
    if output is not None:
        check_place(output, workspace, train, corpus)
    for _ in read_training_rows(train):
        pass
    if output is None:
        return
    copies = (workspace.root / "mined").glob("*/rows.*")
    if not restart:
        _refuse_another(output, copies)


def check_place(output: Path, workspace: Workspace, train: Path, corpus: Path | None = None) -> None:
    """Raise ``UserError`` if the rows cannot be written to ``output``, or if it is an input."""
    read = [*training_files(train)]
    if corpus is not None:
        read.append(BeirFolder(corpus).corpus if corpus.is_dir() else corpus)
    check_output(output, workspace.root, read)
    if output.suffix != output_suffix(train) and not is_stream(output):
        raise UserError(f"{output}: rows of {train} are written as *{output_suffix(train)}")


def _refuse_another(output: Path, copies: Iterable[Path]) -> None:
    """Raise ``UserError`` if ``output`` exists and equals none of ``copies``."""
    if not output.exists() or is_stream(output):
        return
    if not any(path.is_file() and filecmp.cmp(path, output, shallow=False) for path in copies):
        raise UserError(f"{output} exists; choose another `output`, or `restart=True` to replace it")


@dataclass(frozen=True)
class Mining:
    """One run of ``mine``; ``note`` is called with how the training rows are read."""

    workspace: Workspace
    train: Path
    candidates: CandidateSource
    config: MineConfig
    name: str = ""
    note: Note = ignore

    def run(self, *, output: Path | None = None, restart: bool = False) -> dict[str, Any]:
        """Mine, resuming an earlier run, or return the result of a finished one.

        ``output``: file to copy the rows to. Raises ``UserError`` if it exists with other content, unless ``restart``
        is given; a training file is never overwritten.
        """
        if output is not None:
            self._check_output(output, restart)
        with self.workspace.build("mined", self.artifact_name, self.run_spec, restart=restart) as build:
            result = self.workspace.result_again(build) if isinstance(build, Artifact) else self._mine(build)
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
        """The given name, else ``MODEL-INPUT``."""
        return self.name or slug(f"{slug(self.candidates.name)}-{input_stem(self.train)}", NAME_BYTES)

    @cached_property
    def run_spec(self) -> RunSpec:
        """Settings and inputs that identify the run."""
        settings = recorded(self.config) | self.candidates.searched | {"model": self.candidates.name}
        return RunSpec(settings, [input_record(file) for file in training_files(self.train)], self.candidates.parents)

    def _mine(self, build: Build) -> dict[str, Any]:
        started = time.monotonic()
        rows = list(read_raw_rows(self.train, note=self.note))
        known = known_positives(row for _, row in rows)
        self.candidates.get_ready(margin=self.config.margin is not None)
        blocks = build.open_folder() / _BLOCKS
        blocks.mkdir(exist_ok=True)
        with self.workspace.reporter.bar("mining", len(rows), unit="queries") as bar:
            for start in range(0, len(rows), BLOCK):
                window = [row for _, row in rows[start : start + BLOCK]]
                self._mine_block(blocks / f"{start // BLOCK:06d}.json", window, known, start)
                bar.advance(len(window))
        return self._finish(build, blocks, [fields for fields, _ in rows], started)

    def _mine_block(
        self, path: Path, rows: Sequence[TrainingRow], known: Mapping[str, KnownPositives], first: int
    ) -> None:
        if path.exists():
            return
        best: Sequence[float | None] = [None] * len(rows)
        if self.config.margin is not None:
            best = self.candidates.best_positives(rows)
        hits = self.candidates.find([row.query for row in rows], self.config.depth)
        seeds = [(self.config.seed, first + at) for at in range(len(rows))]
        each = zip(rows, hits, seeds, best, strict=True)
        chosen = [
            choose_negatives(known[row.query], ranking, self.candidates, self.config, seed, positive)
            for row, ranking, seed, positive in each
        ]
        write_atomically(path, json.dumps(chosen))

    def _finish(self, build: Build, blocks: Path, rows: Sequence[dict[str, Any]], started: float) -> dict[str, Any]:
        chosen = [found for path in sorted(blocks.glob("*.json")) for found in json.loads(path.read_text())]
        mined = zip(rows, chosen, strict=True)
        document = self.candidates.document
        write_rows(
            build.folder / self.rows_file.name,
            (with_negatives(fields, [document(row) for row in found]) for fields, found in mined),
        )
        shutil.rmtree(blocks)
        sizes = [len(found) for found in chosen]
        counts = {
            "rows": len(rows),
            "negatives": sum(sizes),
            "short": sum(0 < size < self.config.per_query for size in sizes),
            "without": sizes.count(0),
        }
        if few := counts["short"] + counts["without"]:
            message = f"{few} of {len(rows)} rows have fewer than {self.config.per_query} negatives"
            message += f", {counts['without']} of them none" if counts["without"] else ""
            self.workspace.reporter.warn(f"{message}; a greater `depth` or a smaller `margin` finds more")
        seconds = round(time.monotonic() - started, 3)
        result = {"name": build.name, "path": str(build.target), **counts, "model": self.candidates.name}
        result |= {"depth": self.config.depth, "seconds": seconds}
        build.finish(counts, result)
        self.candidates.warn_of_shortfall(len(rows))
        return result

    def _check_output(self, output: Path, restart: bool) -> None:
        check_place(output, self.workspace, self.train)
        if not restart:
            _refuse_another(output, [self.rows_file])

    def _copy(self, rows: Path, output: Path) -> None:
        with rows.open("rb") as source, open_output(output) as file:
            shutil.copyfileobj(source, file)


def mining(
    workspace: Workspace,
    train: Path,
    config: MineConfig,
    *,
    corpus: Path | None = None,
    index: str | None = None,
    output: Path | None = None,
    name: str | None = None,
    restart: bool = False,
) -> Mining:
    """The mining run of the settings: in an index of the workspace, or in a corpus that is encoded first.

    Raises ``UserError`` for the caller's mistakes, before a corpus is encoded.
    """
    config = _checked(workspace, config, corpus, index)
    training_files(train)
    check_request(workspace, train, corpus, output, restart=restart)
    candidates = _candidates(workspace, config, corpus, index)
    return Mining(workspace, train, candidates, config, name or "", workspace.reporter.note)


def _checked(workspace: Workspace, config: MineConfig, corpus: Path | None, index: str | None) -> MineConfig:
    """The settings, checked. Raises ``UserError`` if some do not go together."""
    if (corpus is None) == (index is None):
        raise UserError("give one of: `corpus`, a file to encode and search, or `index`, the name of an index")
    if index is not None and config.model == BM25:
        raise UserError("`model='bm25'` searches a `corpus`, not an `index`")
    if config.max_length is not None and corpus is None:
        raise UserError("`max_length` is for a `corpus` that is to be encoded")
    if config.model != BM25:
        return config
    if config.max_length is not None or config.query_length is not None:
        workspace.reporter.note("`max_length` and `query_length` are for a model: BM25 reads whole texts")
    return replace(config, query_length=None)


def _candidates(workspace: Workspace, config: MineConfig, corpus: Path | None, index: str | None) -> CandidateSource:
    if corpus is not None and config.model == BM25:
        return Bm25Candidates(corpus, workspace.reporter.note)
    model = config.model
    if index is not None:
        artifact = workspace.get("indexes", index)
    else:
        assert corpus is not None
        source = model_to_use(workspace, model, config.trust_remote_code)
        encoder = chosen_encoder(workspace, config.encoder, source)
        encode = EncodeConfig(max_length=config.max_length, dtype=config.dtype, encoder=encoder)
        artifact, model = index_corpus(workspace, source, corpus, encode, "mine"), None
    search = SearchConfig(query_length=config.query_length, model=model, trust_remote_code=config.trust_remote_code)
    searcher = Searcher(workspace, artifact, search)
    searcher.check(config.depth)
    return IndexCandidates(searcher)
