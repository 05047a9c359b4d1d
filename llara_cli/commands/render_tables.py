"""Tables of figures on the screen, or in the format asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from llara_cli.core.console import Console
    from llara_cli.evaluation.result_tables import Grid, Row

_HEAD = 10
"""Columns of the screen that a heading may take before it goes on in the next line."""


def show_grids(
    console: Console, payload: Mapping[str, Any], grids: Sequence[Grid], format_: str, as_csv: Callable[[], str]
) -> None:
    """The result of a command: ``payload`` under ``--json``, else its tables in ``format_``."""
    from llara_cli.evaluation.table_formats import latex, markdown

    if format_ == "json":
        console.as_json = True
    texts: dict[str, Callable[[], str]] = {
        "markdown": lambda: markdown(grids),
        "latex": lambda: latex(grids),
        "csv": as_csv,
    }
    if format_ in texts and not console.as_json:
        console.text(texts[format_]())
    else:
        console.result(payload, lambda: drawn(grids))


def drawn(grids: Sequence[Grid]) -> RenderableType:
    """Tables under each other, each as wide as the screen allows."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for grid in grids:
        parts += [Text("")] * bool(parts)
        parts += [_table(grid, columns, first=number == 0) for number, columns in enumerate(_fitting(grid))]
        parts += [Text(note, style="dim") for note in grid.notes]
    return Group(*parts)


def _fitting(grid: Grid) -> Iterator[Sequence[int]]:
    """Columns that fit the screen together; where not all do, the first one is in every part."""
    from rich.console import Console as Screen

    label = max(map(len, (grid.corner, *map(_label, grid.rows))))
    widths = [1 + max(map(len, (*wrapped(head).split("\n"), *cells))) for head, cells in _columns(grid)]
    room = Screen().width - label - 1
    part: list[int] = []
    for place, width in enumerate(widths):
        if part and sum(widths[other] for other in part) + width - 1 > room:
            yield part
            part = [0]
        part.append(place)
    yield part


def _columns(grid: Grid) -> Iterator[tuple[str, list[str]]]:
    for place, head in enumerate(grid.heads):
        yield head, [row.cells[place] for row in grid.rows]


def _table(grid: Grid, columns: Sequence[int], *, first: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = Text(grid.title, style="bold") if first else None
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(grid.corner, no_wrap=True, vertical="bottom")
    for place in columns:
        table.add_column(Text(wrapped(grid.heads[place])), justify="right", no_wrap=True, vertical="bottom")
    for row in grid.rows:
        cells = [Text(row.cells[place], style="bold" if place in row.best else "") for place in columns]
        table.add_row(Text(_label(row)), *cells, style={"part": "dim", "total": "italic"}.get(row.kind, ""))
    return table


def _label(row: Row) -> str:
    return f"  {row.label}" if row.kind == "part" else row.label


def wrapped(head: str) -> str:
    """A heading in lines of bearable width, cut after spaces and hyphens, not within brackets."""
    lines = [""]
    for piece in re.findall(r"\([^)]*\)|[^\s-]+-?|-", head):
        space = " " if lines[-1] and not lines[-1].endswith("-") else ""
        if lines[-1] and len(lines[-1]) + len(space) + len(piece) > _HEAD:
            lines.append(piece)
        else:
            lines[-1] += space + piece
    return "\n".join(lines)
