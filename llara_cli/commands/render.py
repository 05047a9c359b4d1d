"""Results as tables on the screen, as JSON, Markdown, LaTeX or CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from llara_cli.core.console import Console
    from llara_cli.evaluation.result_tables import ResultTable, Row
    from llara_cli.training.plan import Plan

_HEAD = 10
"""Most columns of a heading's line."""


def human_bytes(size: float) -> str:
    """1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """3725 -> '1 h 2 min'."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def facts(rows: Mapping[str, Any]) -> RenderableType:
    """Name and value, one pair per line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(f"{value:,}" if isinstance(value, int) else str(value)))
    return table


def show_facts(console: Console, result: Mapping[str, Any]) -> None:
    """Show a flat result."""
    readable: dict[str, Callable[[Any], object]] = {
        **dict.fromkeys(("bytes", "disk", "memory", "peak_memory", "bytes_of_plain_vectors"), human_bytes),
        **dict.fromkeys(("seconds", "expected_seconds"), human_seconds),
        "flops": "{:.2e}".format,
    }

    def render() -> RenderableType:
        rows: dict[str, Any] = {}
        for key, value in result.items():
            if key == "memory" and isinstance(value, Mapping):  # the parts that a plan knows; their sum comes next
                rows |= {f"memory: {part}": human_bytes(size) for part, size in value.items()}
            elif key in result.get("estimated", ()):
                rows[key] = about(value)
            elif key != "estimated":
                rows[key] = readable[key](value) if key in readable else value
        return facts(rows)

    console.result(result, render)


def loss_lines(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The course of each loss: its mean over the first tenth of the steps and over the last, as batches differ."""
    part = max(1, len(history) // 10)
    means = f"  (means of the first and last {part} steps)" if part > 1 else "  (first and last step)"
    lines = {}
    for name in ("loss", "ebae", "ebar", "lm"):
        values = [[row[name] for row in rows if row[name] is not None] for rows in (history[:part], history[-part:])]
        if all(values):
            first, last = (f"{fmean(each):.4f}" for each in values)
            lines[name] = first if len(history) == 1 else f"{first} -> {last}{means}"
    return lines


def show_training(console: Console, result: Mapping[str, Any]) -> None:
    """Show losses, time and memory of a training run."""

    def render() -> RenderableType:
        losses = loss_lines(result["history"])
        counts = {key: result[key] for key in ("steps", "texts", "tokens")}
        speed = {"seconds": human_seconds(result["seconds"]), "tokens/s": f"{result['tokens_per_second']:,.0f}"}
        dev = result.get("dev")
        best = {f"dev {dev['metric']}": f"{dev['best']:.4f} (step {dev['step']}, kept)"} if dev else {}
        return facts({"model": result["name"], "path": result["path"], **losses, **best, **counts, **speed})

    console.result(result, render)


def about(count: int) -> str:
    """210057 -> 'about 210,000'."""
    return f"about {float(f'{count:.3g}'):,.0f}"


def show_plan(console: Console, name: str, plan: Plan) -> None:
    """Show the plan of a training run, and which counts are estimates."""
    result = {"name": name, **plan.as_json()}

    def counted(name: str) -> int | str:
        count: int = getattr(plan, name)
        return about(count) if name in plan.estimated else count

    def render() -> RenderableType:
        memory = {f"memory: {part}": human_bytes(size) for part, size in plan.memory.items()}
        rows = {
            "name": name,
            "device": plan.device,
            "dtype": plan.dtype,
            "parameters trained": plan.trained_parameters,
            "parameters frozen": plan.frozen_parameters,
            "texts": counted("texts"),
            "tokens": counted("tokens"),
            "steps": counted("steps"),
            "micro-batch tokens": plan.micro_batch_tokens,
            "layers recomputed": plan.recomputed_layers,
            "FLOPs": f"{plan.flops:.2e}",
            **memory,
            "peak memory": human_bytes(sum(plan.memory.values())),
            "disk": human_bytes(plan.disk),
            "expected time": human_seconds(plan.expected_seconds),
        }
        return facts(rows)

    console.result(result, render)


def show_hits(console: Console, result: Mapping[str, Any]) -> None:
    """Show rank, score, id, title and snippet of each hit."""

    def render() -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        from llara_cli.commands.snippet import one_line, snippet

        title = Text(one_line(result["query"]), style="bold")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        titles = any(hit["title"] for hit in result["hits"])
        for heading in ("rank", "score"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("id", "title")[: 1 + titles]:
            table.add_column(heading, overflow="fold", max_width=26)
        table.add_column("text")
        for hit in result["hits"]:
            found = snippet(hit["text"], result["query"])
            shown = Text(found.text)
            for start, end in found.marks:
                shown.stylize("bold", start, end)
            named = [Text(one_line(hit[name])) for name in ("id", "title")][: 1 + titles]
            table.add_row(str(hit["rank"]), f"{hit['score']:.4f}", *named, shown)
        return table

    console.result(result, render)


def show_tables(
    console: Console, payload: Mapping[str, Any], tables: Sequence[ResultTable], format_: str, as_csv: Callable[[], str]
) -> None:
    """Print the result of a command: ``payload`` under ``--json``, else its tables in ``format_``."""
    from llara_cli.evaluation.table_formats import latex, markdown

    if format_ == "json":
        console.as_json = True
    texts: dict[str, Callable[[], str]] = {
        "markdown": lambda: markdown(tables),
        "latex": lambda: latex(tables),
        "csv": as_csv,
    }
    if format_ in texts and not console.as_json:
        console.text(texts[format_]())
    else:
        console.result(payload, lambda: drawn(tables))


def drawn(tables: Sequence[ResultTable]) -> RenderableType:
    """Tables one below the other, each as wide as the screen allows."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for data in tables:
        parts += [Text("")] * bool(parts)
        parts += [_table(data, columns, first=number == 0) for number, columns in enumerate(_fitting(data))]
        parts += [Text(note, style="dim") for note in data.notes]
    return Group(*parts)


def _fitting(data: ResultTable) -> Iterator[Sequence[int]]:
    """Split the columns into parts that fit the screen; the first column is in every part."""
    from rich.console import Console as Screen

    label = max(map(len, (data.corner, *map(_label, data.rows))))
    widths = [1 + max(map(len, (*wrapped(head).split("\n"), *cells))) for head, cells in _columns(data)]
    room = Screen().width - label - 1
    part: list[int] = []
    for place, width in enumerate(widths):
        if part and sum(widths[other] for other in part) + width - 1 > room:
            yield part
            part = [0]
        part.append(place)
    yield part


def _columns(data: ResultTable) -> Iterator[tuple[str, list[str]]]:
    for place, head in enumerate(data.heads):
        yield head, [row.cells[place] for row in data.rows]


def _table(data: ResultTable, columns: Sequence[int], *, first: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = Text(data.title, style="bold") if first else None
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(data.corner, no_wrap=True, vertical="bottom")
    for place in columns:
        table.add_column(Text(wrapped(data.heads[place])), justify="right", no_wrap=True, vertical="bottom")
    for row in data.rows:
        cells = [Text(row.cells[place], style="bold" if place in row.best else "") for place in columns]
        table.add_row(Text(_label(row)), *cells, style={"part": "dim", "total": "italic"}.get(row.kind, ""))
    return table


def _label(row: Row) -> str:
    return f"  {row.label}" if row.kind == "part" else row.label


def wrapped(head: str) -> str:
    """A heading in lines of at most about ``_HEAD`` columns, cut after spaces and hyphens, not within brackets."""
    lines = [""]
    for piece in re.findall(r"\([^)]*\)|[^\s-]+-?|-", head):
        space = " " if lines[-1] and not lines[-1].endswith("-") else ""
        if lines[-1] and len(lines[-1]) + len(space) + len(piece) > _HEAD:
            lines.append(piece)
        else:
            lines[-1] += space + piece
    return "\n".join(lines)
