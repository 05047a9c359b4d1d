"""Pre-training corpora: files, folders and hub data sets -> raw documents, or rows that are ready to train on.

A document is all the text that belongs together: its passages are consecutive, so each is what the one before predicts.
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

TEXT_FIELDS = ("text", "contents")
READY_FIELDS = ("input", "output_summarize", "output_predict")
_KNOWN = ".txt, .jsonl, MediaWiki's .xml, WikiExtractor's wiki_NN, each also as .gz, .bz2 or .zst; .parquet"
_JSON = "a .json file (one object a line) is read where it is named itself"
LONGEST_TEXT = 1 << 22
"""Characters of a ``.txt`` file that become one document at most."""
_IN_FOLDERS = (".txt", ".jsonl", ".parquet", ".xml")
_NAMED = 10
"""Names and endings that a note names at most."""
_EXTRACTED = re.compile(r"wiki_\d+", re.IGNORECASE)
_ABOUT_THE_DATA = frozenset(
    ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "PROVENANCE", "CITATION", "CHANGELOG", "CHANGES", "AUTHORS")
)


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text to split into consecutive passages, and ``where`` it came from."""

    text: str
    where: str


@dataclass(frozen=True, slots=True)
class ReadyRow:
    """A text with its targets: itself (EBAE) and what follows it (EBAR); None: it has no such term."""

    input: str
    output_summarize: str | None
    output_predict: str | None
    where: str


_KINDS: Mapping[type, str] = {RawDocument: "a raw document", ReadyRow: "a ready row (input, output_...)"}


def corpus_files(arguments: Sequence[str], note: Note = ignore) -> list[Path]:
    """The files that a corpus is read from, in order. Hub data sets have none.

    ``note`` is told of files in folders that are left out, for their endings or as texts about the data.
    """
    listed = [_files(Path(argument)) for argument in arguments if not argument.startswith(HUB)]
    if skipped := [file for _, others in listed for file in others]:
        note(_told(skipped))
    return [file for found, _ in listed for file in found]


def read_corpus(arguments: Sequence[str], shuffle_seed: int | None = None) -> Iterator[RawDocument | ReadyRow]:
    """Every document, or every ready row, of files, folders and ``hf:`` data sets, in the order given.

    ``shuffle_seed``: shuffle the rows of each ``hf:`` data set as ``read_hub`` does; files keep their order.
    Documents without a word are left out: there is nothing to learn from them. Raises ``UserError`` where documents and
    ready rows are mixed, and at the end where there was neither.
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
        raise UserError(f"no document in {', '.join(arguments)}")


def _records(arguments: Sequence[str], shuffle_seed: int | None) -> Iterator[Record]:
    for argument in arguments:
        if argument.startswith(HUB):
            yield from read_hub(argument, shuffle_seed)
        else:
            for file in _files(Path(argument))[0]:
                yield from _reader(file)(file)


def _item(record: Record) -> RawDocument | ReadyRow:
    if record.name_of(*TEXT_FIELDS) is None and READY_FIELDS[0] in record.fields:
        summarize, predict = (record.optional_string(name) for name in READY_FIELDS[1:])
        return ReadyRow(record.string(READY_FIELDS[0]), summarize, predict, record.where)
    text, title = record.string(*TEXT_FIELDS), (record.optional_string("title") or "").strip()
    # WikiExtractor repeats the title at the head of the text; most others do not. A title alone is no document.
    titled = text if not text.strip() or text.lstrip().startswith(title) else f"{title}\n{text}"
    return RawDocument(titled, record.where)


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """The file itself, or the corpus files of a folder; and those of a folder that nobody reads.

    Raises ``UserError`` where there is no file to read.
    """
    if not path.is_dir():
        check_file(path)
        _reader(path)
        return [path], []
    if is_beir_folder(path):
        # Its queries and judgments are no documents.
        return [BeirFolder(path).corpus], []
    files = _walk(path)
    found = [path / name for name in files if _belongs(name)]
    others = [name for name in files if not _belongs(name)]
    if not found:
        why = f"; {_told(others)}" if others else ""
        raise UserError(f"{path}: no corpus file in this folder: looked for {_KNOWN}{why}")
    return found, others


def _walk(folder: Path) -> list[Path]:
    """Paths of all files below a folder, relative to it, sorted by their parts; no hidden ones.

    Links to folders are followed. A folder that can be reached in several ways is walked once, so a loop ends.
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


def _told(skipped: Sequence[Path]) -> str:
    """How many files nobody reads, their endings, and the names of those about the data."""
    about = {path.name for path in skipped if _is_about_the_data(path)}
    endings = {"".join(kind(path)) or "no ending" for path in skipped if path.name not in about}
    told = [*sorted(about), *sorted(endings)]
    named = one_line(", ".join(told[:_NAMED])) + (", ..." if len(told) > _NAMED else "")
    hint = f" ({_JSON})" if any(kind(path)[0] == ".json" for path in skipped) else ""
    return f"skipped {len(skipped)} file{'s' if len(skipped) > 1 else ''}: {named}{hint}"


def _parts(path: Path) -> tuple[str, ...]:
    return path.parts


def _is_about_the_data(name: Path) -> bool:
    """Whether a file met inside a folder is a text about the data: README, LICENSE.txt, PROVENANCE.md ..."""
    suffix, compression = kind(name)
    stem = name.name[: len(name.name) - len(suffix + compression)]
    return suffix in ("", ".txt", ".md") and stem.upper() in _ABOUT_THE_DATA


def _belongs(name: Path) -> bool:
    """Whether a file met inside a folder is part of the corpus.

    Left out are what no reader knows, texts about the data, and ``.json``: in a folder that is metadata more often than
    lines. It is read, as hidden files and texts about the data are, when it is named itself.
    """
    if _is_about_the_data(name):
        return False
    extracted = _EXTRACTED.fullmatch(name.name.partition(".")[0]) is not None
    return _format(name) in _IN_FOLDERS or (_format(name) == "" and extracted)


def _format(path: Path) -> str | None:
    """What the name promises; parquet is compressed inside, so ``.parquet.gz`` is no format."""
    suffix, compression = kind(path)
    return None if suffix == ".parquet" and compression else suffix


def _reader(path: Path) -> Callable[[Path], Iterator[Record]]:
    readers: dict[str | None, Callable[[Path], Iterator[Record]]] = {
        ".txt": _read_text,
        ".jsonl": _read_rows,
        ".json": _read_rows,
        ".parquet": _read_rows,
        ".xml": read_mediawiki,
        "": read_wikiextractor,
    }
    if _format(path) not in readers:
        raise UserError(f"{path}: unknown kind of corpus: known are {_KNOWN}, .json (one object a line)")
    return readers[_format(path)]


def _read_rows(path: Path) -> Iterator[Record]:
    return read_records(path, columns=("title", *TEXT_FIELDS, *READY_FIELDS))


def _read_text(path: Path) -> Iterator[Record]:
    """A ``.txt`` file is one document, its paragraphs kept: blank lines are too common inside one to part documents.

    One too long for that (``LONGEST_TEXT``) comes in pieces, so that memory stays bounded, cut at the end of a
    paragraph, a line or a word, whichever there is.
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
    """Consecutive pieces of at most ``longest`` characters, the last the shorter rest."""
    start = 0
    while len(text) - start > longest:
        cut = _cut(text, start + longest // 2, start + longest)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    """The last place between ``start`` and ``end`` to cut at: a blank line, else a line's end, else a space."""
    for separator in ("\n\n", "\n", " "):
        place = text.rfind(separator, start, end)
        if place >= 0:
            return place
    return end
