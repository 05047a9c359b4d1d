"""Downloads collections by ir_datasets (extra ``eval``) into folders in BEIR layout in the workspace."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

from llara_cli.core.artifacts import Artifact, Build, Kind, RunSpec
from llara_cli.core.errors import LlaraError
from llara_cli.core.registry import missing_extra
from llara_cli.core.workspace import Workspace
from llara_cli.evaluation.benchmarks import Collection

KIND: Kind = "datasets"
_MEMBER = re.compile(r"[^/]+/((?:\w+/)?(?:corpus\.jsonl|queries\.jsonl|qrels/\w+\.tsv))")
"""Files to extract from an archive: BEIR's layout, with a folder per part if there are several."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file in ir_datasets' list of downloads."""

    key: str
    url: str
    md5: str
    size: int
    path: Path | None

    @property
    def missing(self) -> int:
        """Bytes still to download, by ir_datasets' estimate."""
        return 0 if self.path is not None and self.path.exists() else self.size


class Downloads:
    """Downloads of collections by ir_datasets. Raises ``UserError`` if that is not installed."""

    def __init__(self, workspace: Workspace) -> None:
        # its progress bars and notes would mix with ours
        os.environ.setdefault("IR_DATASETS_DL_DISABLE_PBAR", "true")
        try:
            import ir_datasets
        except ImportError as error:
            raise missing_extra("ir_datasets, which downloads benchmarks,", "eval") from error
        ir_datasets.log.easy().logger()
        logging.getLogger("ir_datasets").setLevel(logging.ERROR)
        self._library = ir_datasets
        self._workspace = workspace

    def size(self, collections: Iterable[Collection]) -> int:
        """Bytes to download."""
        return sum(remote.missing for collection in collections for remote in self.files(collection))

    def files(self, collection: Collection) -> list[RemoteFile]:
        """The files of a collection in ir_datasets' list."""
        source = self._source(collection)
        contents = source.contents()
        keys = [collection.archive] if collection.archive else collection.files
        return [self._remote_file(key, contents[key], self._base(collection)) for key in keys]

    def bring(self, collection: Collection) -> Artifact:
        """Download the missing files of a collection, and make an artifact of it."""
        files = self.files(collection)
        settings = {"source": self._name(collection), "md5": {remote.key: remote.md5 for remote in files}}
        with self._workspace.build(KIND, collection.name, RunSpec(settings)) as build:
            if isinstance(build, Artifact):
                return build
            self._transfer(collection, files)
            write = self._unpack if collection.archive else self._convert
            count = write(collection, build.open_folder())
            return self._finish(build, count, files)

    def _finish(self, build: Build, count: int, files: Sequence[RemoteFile]) -> Artifact:
        result = {"name": build.name, "path": str(build.target), "documents": count}
        return build.finish({"documents": count}, result, "evaluate", measured={"urls": [item.url for item in files]})

    def _transfer(self, collection: Collection, files: Sequence[RemoteFile]) -> None:
        from llara_cli.evaluation.transfer import fetch

        kept = [remote for remote in files if remote.path is not None]
        missing = sum(remote.missing for remote in kept)
        source = self._source(collection)
        with self._workspace.reporter.bar(f"downloading {collection.name}", missing / 1e6, unit="MB") as bar:
            for remote in kept:
                assert remote.path is not None
                fetch(source[remote.key], remote.path, lambda count: bar.advance(count / 1e6))

    def _unpack(self, collection: Collection, folder: Path) -> int:
        """Extract an archive in BEIR layout; return the number of documents."""
        (remote,) = self.files(collection)
        documents = 0
        assert remote.path is not None
        with ZipFile(remote.path) as archive:
            members = [(item, found[1]) for item in archive.infolist() if (found := _MEMBER.fullmatch(item.filename))]
            if not members:
                raise LlaraError(f"{remote.path}: not an archive in BEIR layout")
            total = sum(item.file_size for item, _ in members) / 1e6
            with self._workspace.reporter.bar(f"unpacking {collection.name}", total, unit="MB") as bar:
                for item, name in members:
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(item) as source, path.open("wb") as target:
                        lines = _copy(source, target)
                    documents += lines if path.name == "corpus.jsonl" else 0
                    bar.advance(item.file_size / 1e6)
        return documents

    def _convert(self, collection: Collection, folder: Path) -> int:
        """Convert a collection with ir_datasets to a folder in BEIR layout; return the number of documents."""
        documents = self._library.load(collection.docs)
        with self._workspace.reporter.bar(f"converting {collection.name}", None, unit="documents") as bar:
            count = _write_lines(folder / "corpus.jsonl", map(_document, _counting(documents.docs_iter(), bar.advance)))
        (folder / "qrels").mkdir(exist_ok=True)
        queries: dict[str, str] = {}
        for split, name in collection.splits.items():
            judged = self._library.load(name)
            queries |= {query.query_id: query.text for query in judged.queries_iter()}
            rows = (f"{row.query_id}\t{row.doc_id}\t{row.relevance}\n" for row in judged.qrels_iter())
            with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(("query-id\tcorpus-id\tscore\n", *rows))
        _write_lines(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries.items()))
        return count

    def _source(self, collection: Collection) -> Any:
        """ir_datasets' entry of the collection, with the hashes of its files."""
        return self._library.util.DownloadConfig.context(self._space(collection), self._base(collection))

    def _base(self, collection: Collection) -> Path:
        return Path(self._library.util.home_path()) / self._space(collection)

    @staticmethod
    def _space(collection: Collection) -> str:
        return "beir" if collection.archive else collection.docs

    @staticmethod
    def _name(collection: Collection) -> str:
        return f"ir_datasets:beir/{collection.archive}" if collection.archive else f"ir_datasets:{collection.docs}"

    @staticmethod
    def _remote_file(key: str, entry: dict[str, Any], base: Path) -> RemoteFile:
        """A file of an entry; small ones have no ``cache_path``, as ir_datasets fetches them when it reads them."""
        path = base / entry["cache_path"] if "cache_path" in entry else None
        return RemoteFile(key, entry["url"], entry.get("expected_md5", ""), int(entry.get("size_hint", 0)), path)


def _copy(source: IO[bytes], target: IO[bytes]) -> int:
    """Copy a file; return its number of lines."""
    lines, last = 0, b"\n"
    while block := source.read(_BLOCK):
        target.write(block)
        lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _document(found: Any) -> dict[str, str]:
    """A document of ir_datasets; MS MARCO's passages have a text, its documents a title and a body."""
    text = found.text if hasattr(found, "text") else found.body
    return {"_id": found.doc_id, "title": getattr(found, "title", ""), "text": text}


def _counting(items: Iterable[Any], progress: Any) -> Iterator[Any]:
    for item in items:
        progress()
        yield item
