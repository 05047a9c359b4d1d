"""Tab- and comma-separated files: rows, quotation marks and header lines, the same for documents and training rows.

``.csv``    RFC 4180: a cell in quotation marks may hold commas and line breaks; a mark that is not closed is an error.
``.tsv``    A line is a row and a tab ends a cell, always. Where the file has a header line, a cell that begins and ends
            with a quotation mark, with every mark between them doubled, is quoted as in CSV: so pandas writes them, and
            DPR's psgs_w100.tsv is. Any other mark is text. A file without a header line is read like MS MARCO's: every
            mark in it is text, unless the very first cell, an id, is in marks.
header      Names in any case, in quotation marks or not; blanks and hyphens in them count as ``_``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.data.text_files import kind, read_lines

Row = tuple[str, list[str]]
"""``file:line`` of a row, and its cells."""
NamedRow = tuple[str, dict[str, str]]
"""``file:line`` of a row, and its cells by column name."""
_LONGEST_CELL = 1 << 26
"""Most characters of a cell: in a longer one a quotation mark was not closed, and the rest of the file is its cell."""
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs (or name the file .tsv)"}
_BLANK = re.compile(r"[\s-]+")
_NAME = re.compile(r"(?:[^\W\d]|-)+")
"""Pattern of a column name: one word without digits."""
_WORD = re.compile(r"[^\W\d_]+")
_MOST_WORDS = 3
_COLUMN_WORDS = {
    "abstract", "answer", "article", "body", "content", "contents", "description", "doc", "docid", "docno",
    "document", "heading", "id", "identifier", "idx", "index", "key", "name", "no", "nr", "num", "number", "page",
    "paragraph", "passage", "pid", "qid", "query", "question", "sentence", "summary", "text", "title", "url",
}  # fmt: skip
"""Words in column names."""


def is_delimited(path: Path) -> bool:
    """Whether it is a ``.csv`` or ``.tsv``, by its name."""
    return kind(path)[0] in (".csv", ".tsv")


def read_csv(path: Path) -> Iterator[NamedRow]:
    """Rows of a ``.csv`` by the names in its header line.

    Raises ``UserError`` if two columns have the same name, if no commas separate the columns, and for a row of another
    number of columns.
    """
    rows = csv_rows(path)
    where, header = next(rows, ("", []))
    other = next((mark for mark in _OTHER_DELIMITERS if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise UserError(
            f"{where}: the header line has no comma, but {_OTHER_DELIMITERS[other]}: separate the columns with commas"
        )
    yield from _named_rows(where, header, rows)


def read_tsv(path: Path) -> Iterator[NamedRow]:
    """Rows of a ``.tsv`` by the names in its header line. Raises ``UserError`` as ``read_csv`` does."""
    rows = map(_unquoted_row, tsv_rows(path))
    where, header = next(rows, ("", []))
    yield from _named_rows(where, header, rows)


def _named_rows(where: str, header: Sequence[str], rows: Iterator[Row]) -> Iterator[NamedRow]:
    """``rows`` by the names in the ``header`` line at ``where``."""
    names = column_names(header)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: the header line needs a different name for every column: {names}")
    for place, cells in rows:
        yield place, name_cells(place, names, cells, "header")


def name_cells(where: str, names: Sequence[str], cells: Sequence[str], first: str) -> dict[str, str]:
    """Cells by name. Raises ``UserError`` if there are more or fewer than in the ``first`` (header) line."""
    if len(cells) != len(names):
        raise UserError(
            f"{where}: {len(cells)} columns, but the {first} line has {len(names)}; is a tab or a line break in a text?"
        )
    return dict(zip(names, cells, strict=True))


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a ``.csv``, unquoted; blank lines are skipped. Raises ``UserError`` for a broken quotation."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}: broken CSV: {error}; is a quotation mark not closed or not doubled?") from error
        if cells is None:
            return
        if len(cells) > 1 or any(cell.strip() for cell in cells):
            yield where, cells


def tsv_rows(path: Path) -> Iterator[Row]:
    """Rows of a ``.tsv``, every quotation mark kept; blank lines are skipped."""
    return ((f"{path}:{number}", line.split("\t")) for number, line in read_lines(path) if line.strip(" "))


def _unquoted_row(row: Row) -> Row:
    return row[0], [unquoted(cell) for cell in row[1]]


def unquoted(cell: str) -> str:
    """A cell without its quotation marks, as CSV has them: around the whole cell, with each mark inside it doubled.

    Any other quotation mark is text.
    """
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def quoted(cell: str) -> str:
    """A text as a cell of a ``.tsv`` with a header line, in quotation marks if it would lose its own otherwise."""
    return cell if unquoted(cell) == cell else '"' + cell.replace('"', '""') + '"'


def column_names(cells: Sequence[str]) -> list[str]:
    """The names in a header line: without quotation marks, in lower case, with ``_`` for blanks and hyphens."""
    return [_BLANK.sub("_", unquoted(cell.strip()).strip().lower()) for cell in cells]


def look_like_names(cells: Sequence[str]) -> bool:
    """Whether every cell could be the name of a column."""
    return all(_NAME.fullmatch(unquoted(cell.strip()).strip()) for cell in cells)


def has_column_word(cell: str) -> bool:
    """Whether a cell of at most three words has one of the words in column names: ``Doc No.``, ``#id (int)``."""
    words = _WORD.findall(column_names([cell])[0])
    return len(words) <= _MOST_WORDS and not _COLUMN_WORDS.isdisjoint(words)
