"""Cells of tab-separated files."""

from __future__ import annotations


def unquoted(cell: str) -> str:
    """A cell without its quotation marks, as CSV has them: around the whole cell, with each mark inside it doubled.

    Any other quotation mark is text.
    """
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')
