"""Folders in BEIR layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.data.text_files import COMPRESSIONS, kind

_LAYOUT = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"


@dataclass(frozen=True)
class BeirFolder:
    """A test collection in BEIR's layout. Raises ``UserError``, with what is missing, for any other folder."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"no such folder: {self.path}")
        for name in ("corpus.jsonl", "queries.jsonl"):
            if _variant(self.path / name) is None:
                raise UserError(f"{self.path} is not a BEIR folder: {name} is missing ({_LAYOUT})")
        if not self.splits():
            raise UserError(f"{self.path} is not a BEIR folder: qrels/*.tsv is missing ({_LAYOUT})")

    @property
    def name(self) -> str:
        """The data set's name: the folder's."""
        return self.path.resolve().name

    @property
    def corpus(self) -> Path:
        """The documents, compressed or not."""
        return _variant(self.path / "corpus.jsonl") or self.path / "corpus.jsonl"

    @property
    def queries(self) -> Path:
        """The queries of all splits, compressed or not."""
        return _variant(self.path / "queries.jsonl") or self.path / "queries.jsonl"

    def splits(self) -> list[str]:
        """The splits that have judgments, such as ``dev``, ``test``, ``train``."""
        files = (self.path / "qrels").glob("*")
        return sorted({file.name.partition(".tsv")[0] for file in files if kind(file)[0] == ".tsv" and file.is_file()})

    def qrels(self, split: str) -> Path:
        """The judgments of a split. Raises ``UserError``, with the existing splits, for an unknown one."""
        found = _variant(self.path / "qrels" / f"{split}.tsv")
        if found is None:
            raise UserError(
                f"{self.path} has no split {split!r} (qrels/{split}.tsv): there are {', '.join(self.splits())}"
            )
        return found


def is_beir_folder(path: Path) -> bool:
    """Whether ``path`` has BEIR's layout."""
    try:
        BeirFolder(path)
    except UserError:
        return False
    return True


def _variant(path: Path) -> Path | None:
    """``path``, or a compressed variant of it; None if there is neither."""
    candidates = (path.with_name(path.name + ending) for ending in ("", *COMPRESSIONS))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
