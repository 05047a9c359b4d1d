"""The bar chart of a comparison, with confidence intervals."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from llara_cli.core.artifacts import KINDS
from llara_cli.core.errors import UserError
from llara_cli.core.output_files import check_output, open_output
from llara_cli.core.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac")
_FONT = "DejaVu Sans"
_WIDE = ("Noto Sans CJK", "Noto Sans SC", "Noto Sans JP", "Arial Unicode MS", "WenQuanYi", "Unifont")
_MISSING = r"Glyph .* missing from font"
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "llara",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": "sans-serif",
}
_BAR, _GAP = 0.24, 0.22
"""Inches."""


def check_chart(path: Path, workspace: Workspace) -> None:
    """Raise ``UserError`` if no image can be written to ``path``."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"`plot={path}`: write it as {' or '.join(SUFFIXES)}")
    check_output(path, workspace.root, setting="plot", own=KINDS)


def draw(result: Mapping[str, Any], paths: Sequence[Path]) -> bool:
    """Draw the chart and write it to each path; equal results give equal files.

    Return whether the fonts have every letter of the names; missing ones are drawn as boxes.
    """
    # a $ in a name starts no formula
    with mpl.rc_context(_STYLE | {"font.sans-serif": _fonts()}), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _MISSING)
        chart = _chart(result)
        for path in paths:
            # neither the date nor the library's version, so that equal results give equal files
            kind = path.suffix.lower().removeprefix(".")
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            with open_output(path) as file:
                chart.savefig(file, dpi=160, format=kind, metadata=metadata)
    return not any(re.match(_MISSING, str(warning.message)) for warning in caught)


def _fonts() -> list[str]:
    """The default font, then the installed ones with most scripts."""
    return [_FONT, *sorted(name for name in set(fontManager.get_font_names()) if name.startswith(_WIDE))]


def _chart(result: Mapping[str, Any]) -> Figure:
    rows = dict(result["datasets"]) | ({"mean": result["mean"]} if "mean" in result else {})
    names = result["models"]
    height = 1.3 + len(rows) * (len(names) * _BAR + _GAP)
    chart = Figure(figsize=(7.5, height), layout="constrained")
    axes = chart.subplots()
    for place, name in enumerate(names):
        _bars(axes, rows, name, place, len(names))
    _label(axes, result, rows)
    return chart


def _bars(axes: Axes, rows: Mapping[str, Any], name: str, place: int, count: int) -> None:
    """One model's bars, a little above or below the middle of each row."""
    share = _BAR / (count * _BAR + _GAP)
    middles = [row + (place - (count - 1) / 2) * share for row in range(len(rows))]
    values = [100 * row["scores"][name] for row in rows.values()]
    ends = [tuple(100 * end for end in row["intervals"][name]) for row in rows.values()]
    spread = [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    color = _COLORS[place % len(_COLORS)]
    error = {"elinewidth": 1, "ecolor": "#333333", "capsize": 2}
    axes.barh(middles, values, height=0.92 * share, color=color, label=_legend(name), xerr=spread, error_kw=error)
    for middle, value, (_, high) in zip(middles, values, ends, strict=True):
        axes.annotate(
            f"{value:.1f}", (max(value, high), middle), (4, 0), textcoords="offset points", va="center", fontsize=7
        )


def _legend(name: str) -> str:
    """The name as a label: Matplotlib ignores one that begins with ``_``."""
    return _text(f" {name}" if name.startswith("_") else name)


def _text(name: str) -> str:
    """The name, with bytes that are not UTF-8, which no font could draw, as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _label(axes: Axes, result: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    metrics = list(dict.fromkeys(row["metric"] for row in rows.values()))
    shared = len(metrics) == 1
    labels = [name if shared or name == "mean" else f"{name}\n{row['metric']}" for name, row in rows.items()]
    axes.set_yticks(range(len(rows)), list(map(_text, labels)))
    axes.invert_yaxis()
    axes.set_xlabel(f"{metrics[0] if shared else 'main metric'} x 100, 95 % bootstrap intervals")
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_title(_text(str(result["benchmark"])), loc="left", fontweight="bold")
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if "mean" in rows:
        axes.axhline(len(rows) - 1.5, color="#999999", linewidth=0.8)
    axes.figure.legend(loc="outside upper right", ncols=4, frameon=False)
