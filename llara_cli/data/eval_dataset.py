"""A test collection: documents, judged queries and judgments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path

from llara_cli.core.artifacts import write_atomically
from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_digest
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.data.runs import Qrels, read_qrels

_NAMED = 3
"""Most ids in a warning."""


@dataclass(frozen=True)
class EvalDataset:
    """A folder in BEIR layout and one of its splits; ``label``: its name in a benchmark, if not the folder's."""

    folder: BeirFolder
    split: str
    label: str = ""

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.label or self.folder.name

    @cached_property
    def qrels(self) -> Qrels:
        """query id -> document id -> grade."""
        return read_qrels(self.folder.qrels(self.split))

    @cached_property
    def queries(self) -> dict[str, str]:
        """Queries that have judgments, in the file's order. Raises ``UserError`` if there are none."""
        found = {
            document.id: document.passage
            for document in read_documents(self.folder.queries)
            if document.id in self.qrels
        }
        if not found:
            qrels = self.folder.qrels(self.split)
            raise UserError(f"{self.folder.queries}: none of its queries has judgments in {qrels}")
        return found

    @property
    def lost(self) -> int:
        """Number of judged queries that the collection lacks; they count 0."""
        return len(self.qrels) - len(self.queries)

    def warn_of_missing_documents(self, ids: Iterable[str], warn: Callable[[str], None]) -> None:
        """Warn of judged documents that are not among the corpus' ``ids``, a stream."""
        left = dict.fromkeys(document for grades in self.qrels.values() for document in grades)
        for name in ids:
            left.pop(name, None)
        if left:
            first = ", ".join(islice(left, _NAMED)) + (", ..." if len(left) > _NAMED else "")
            warn(
                f"{self.name}: {len(left)} judged documents are not in {self.folder.corpus}: {first}; "
                f"those that are relevant count as not found"
            )

    def warn_of_missing_queries(self, warn: Callable[[str], None]) -> None:
        """Warn of judged queries that the collection lacks."""
        if self.lost:
            warn(f"{self.name}: {self.lost} judged queries are not in {self.folder.queries}: they count 0")

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """sha256 of the files that a result depends on."""
        files = {
            "corpus": self.folder.corpus,
            "queries": self.folder.queries,
            "qrels": self.folder.qrels(self.split),
        }
        return {part: input_digest(path) for part, path in files.items()}

    def write_queries(self, folder: Path) -> Path:
        """Write only the judged queries to a file in ``folder``, as the queries of all splits may be in one file.

        Different queries have different files, even of data sets of the same name.
        """
        text = "".join(self._query_lines())
        path = folder / sha256(text.encode()).hexdigest()[:16] / f"{self.name.replace('/', '-')}-{self.split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
        return path

    def _query_lines(self) -> Iterator[str]:
        for name, text in self.queries.items():
            yield json.dumps({"_id": name, "text": text}, ensure_ascii=False) + "\n"
