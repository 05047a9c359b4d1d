"""Pre-training corpora: files, folders and hub data sets -> raw documents, or prepared rows.

A document is text that belongs together: its passages are consecutive, so each is the EBAR target of the one before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.data.beir import BeirFolder, is_beir_folder
from llara_cli.data.hub import PREFIX as HUB
from llara_cli.data.hub import read_hub
from llara_cli.data.records import Record, read_records
from llara_cli.data.text_files import Note, check_file, ignore, kind, one_line, read_lines, unreadable
from llara_cli.data.wiki_dumps import read_mediawiki, read_wikiextractor

RAW_TEXT_FIELDS = ("text", "contents")
READY_FIELDS = ("input", "output_summarize", "output_predict")
_KNOWN = ".txt, .jsonl, MediaWiki's .xml, WikiExtractor's wiki_NN, each also as .gz, .bz2 or .zst; .parquet"
_JSON = "a .json file (one object per line) is read if it is named itself"
LONGEST_TEXT = 1 << 22
"""Most characters of a ``.txt`` file in one document."""
_IN_FOLDERS = (".txt", ".jsonl", ".parquet", ".xml")
_NAMED = 10
"""Most names and endings in a note."""
_EXTRACTED = re.compile(r"wiki_\d+", re.IGNORECASE)
_ABOUT_THE_DATA = frozenset(
    ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "PROVENANCE", "CITATION", "CHANGELOG", "CHANGES", "AUTHORS")
)


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text to split into consecutive passages, and ``where`` it is from."""

    text: str
    where: str


@dataclass(frozen=True, slots=True)
class ReadyRow:
    """A text with its targets: ``self`` for EBAE and ``next`` for EBAR; None: the term is left out."""

    input: str
    output_summarize: str | None
    output_predict: str | None
    where: str


_KINDS: Mapping[type, str] = {RawDocument: "a raw document", ReadyRow: "a ready row (input, output_...)"}


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file to read, classified by its name in ``CorpusFile.named``.

    Attributes:
        format: the ending in lower case, without that of a compression; None for a compressed parquet, which is
            unknown.
        about_the_data: whether it describes the data: README, LICENSE.txt, PROVENANCE.md ...
    """

    path: Path
    format: str | None
    about_the_data: bool

    @classmethod
    def named(cls, path: Path) -> CorpusFile:
        """Classify a file by its name."""
        suffix, compression = kind(path)
        stem = path.name[: len(path.name) - len(suffix + compression)]
        about = suffix in ("", ".txt", ".md") and stem.upper() in _ABOUT_THE_DATA
        return cls(path, None if suffix == ".parquet" and compression else suffix, about)

    @property
    def belongs_in_folder(self) -> bool:
        """Whether a file inside a folder is part of the corpus.

        Unknown formats, texts about the data, and ``.json`` are left out: in a folder, ``.json`` is usually metadata.
        It is read, like hidden files and texts about the data, if it is named itself.
        """
        extracted = self.format == "" and _EXTRACTED.fullmatch(self.path.name.partition(".")[0]) is not None
        return not self.about_the_data and (self.format in _IN_FOLDERS or extracted)

    def records(self) -> Iterator[Record]:
        """Its rows or documents. Raises ``UserError`` for an unknown format."""
        return self.reader(self.path)

    @property
    def reader(self) -> Callable[[Path], Iterator[Record]]:
        """The function that reads the format. Raises ``UserError`` for an unknown one."""
        if self.format not in _READERS:
            raise UserError(f"{self.path}: unknown kind of corpus: known are {_KNOWN}, .json (one object per line)")
        return _READERS[self.format]


def corpus_files(arguments: Sequence[str], note: Note = ignore) -> list[Path]:
    """The files of a corpus, in order. Hub data sets have none.

    ``note`` is called with the files in folders that are skipped.
    """
    listed = [_files(Path(argument)) for argument in arguments if not argument.startswith(HUB)]
    if skipped := [file for _, others in listed for file in others]:
        note(_skipped(skipped))
    return [file.path for files, _ in listed for file in files]


def read_corpus(arguments: Sequence[str], shuffle_seed: int | None = None) -> Iterator[RawDocument | ReadyRow]:
    """Every document, or every prepared row, of files, folders and ``hf:`` data sets, in the order given.

    ``shuffle_seed``: shuffle the rows of each ``hf:`` data set as ``read_hub`` does; files keep their order. Documents
    without a word are skipped. Raises ``UserError`` if documents and prepared rows are mixed, and at the end if there
    were neither.
    """
    first: RawDocument | ReadyRow | None = None
    for record in _records(arguments, shuffle_seed):
        item = _item(record)
        if isinstance(item, RawDocument) and not item.text.strip():
            continue
        first = first or item
        if type(item) is not type(first):
            raise record.error(
                f"{_KINDS[type(item)]}, but {first.where} is {_KINDS[type(first)]}: train on one kind only"
            )
        yield item
    if first is None:
        raise UserError(f"no documents in {', '.join(arguments)}")


def _records(arguments: Sequence[str], shuffle_seed: int | None) -> Iterator[Record]:
    for argument in arguments:
        if argument.startswith(HUB):
            yield from read_hub(argument, shuffle_seed)
        else:
            for file in _files(Path(argument))[0]:
                yield from file.records()


def _item(record: Record) -> RawDocument | ReadyRow:
    if record.name_of(*RAW_TEXT_FIELDS) is None and READY_FIELDS[0] in record.fields:
        summarize, predict = (record.optional_string(name) for name in READY_FIELDS[1:])
        return ReadyRow(record.string(READY_FIELDS[0]), summarize, predict, record.where)
    text, title = record.string(*RAW_TEXT_FIELDS), (record.optional_string("title") or "").strip()
    # WikiExtractor repeats the title at the start of the text; most others do not. A title alone is not a document.
    titled = text if not text.strip() or text.lstrip().startswith(title) else f"{title}\n{text}"
    return RawDocument(titled, record.where)


def _files(path: Path) -> tuple[list[CorpusFile], list[CorpusFile]]:
    """The file itself, or the corpus files of a folder; and the skipped files of a folder.

    Raises ``UserError`` if there is no file to read.
    """
    if not path.is_dir():
        check_file(path)
        file = CorpusFile.named(path)
        _ = file.reader
        return [file], []
    if is_beir_folder(path):
        # queries and judgments are not documents
        return [CorpusFile.named(BeirFolder(path).corpus)], []
    every = [CorpusFile.named(path / name) for name in _walk(path)]
    files = [file for file in every if file.belongs_in_folder]
    others = [file for file in every if not file.belongs_in_folder]
    if not files:
        why = f"; {_skipped(others)}" if others else ""
        raise UserError(f"{path}: no corpus file in this folder: looked for {_KNOWN}{why}")
    return files, others


def _walk(folder: Path) -> list[Path]:
    """Paths of all files below a folder, relative to it, sorted by their parts; no hidden ones.

    Links to folders are followed. A folder reachable in several ways is visited once, so loops end.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    found: list[Path] = []
    walked: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in walked:
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(parent, name).relative_to(folder) for name in names if not name.startswith("."))
    return sorted(found, key=_parts)


def _skipped(files: Sequence[CorpusFile]) -> str:
    """The note on skipped files: their number, their endings, and the names of those about the data."""
    about = {file.path.name for file in files if file.about_the_data}
    endings = {"".join(kind(file.path)) or "no ending" for file in files if not file.about_the_data}
    named = [*sorted(about), *sorted(endings)]
    listed = one_line(", ".join(named[:_NAMED])) + (", ..." if len(named) > _NAMED else "")
    hint = f" ({_JSON})" if any(file.format == ".json" for file in files) else ""
    return f"skipped {len(files)} file{'s' if len(files) > 1 else ''}: {listed}{hint}"


def _parts(path: Path) -> tuple[str, ...]:
    return path.parts


def _read_rows(path: Path) -> Iterator[Record]:
    return read_records(path, columns=("title", *RAW_TEXT_FIELDS, *READY_FIELDS))


def _read_text(path: Path) -> Iterator[Record]:
    """Read a ``.txt`` file as one document: blank lines, common within documents, do not separate documents.

    A file longer than ``LONGEST_TEXT`` is cut into pieces, to limit memory, at the end of a paragraph, a line or a
    word.
    """
    lines: list[str] = []
    size, start = 0, 1
    for number, line in read_lines(path):
        lines.append(line)
        size += len(line) + 1
        if size > LONGEST_TEXT:
            *whole, rest = pieces("\n".join(lines) + "\n", LONGEST_TEXT)
            yield from (Record(f"{path}:{start}", {"text": piece}) for piece in whole)
            lines, size, start = [rest.removesuffix("\n")], len(rest), number
    yield Record(f"{path}:{start}", {"text": "\n".join(lines)})


def pieces(text: str, longest: int) -> Iterator[str]:
    """Consecutive pieces of at most ``longest`` characters."""
    start = 0
    while len(text) - start > longest:
        cut = _cut(text, start + longest // 2, start + longest)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    """The last place between ``start`` and ``end`` to cut at: a blank line, else the end of a line, else a space."""
    for separator in ("\n\n", "\n", " "):
        place = text.rfind(separator, start, end)
        if place >= 0:
            return place
    return end


_READERS: Mapping[str | None, Callable[[Path], Iterator[Record]]] = {
    ".txt": _read_text,
    ".jsonl": _read_rows,
    ".json": _read_rows,
    ".parquet": _read_rows,
    ".xml": read_mediawiki,
    "": read_wikiextractor,
}
"""Format -> the function that reads it."""
