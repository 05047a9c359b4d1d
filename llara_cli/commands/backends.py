"""``llara backends``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llara_cli.commands.session import Session

if TYPE_CHECKING:
    from rich.table import Table

    from llara_cli.core.registry import Availability


def backends(
    session: Session,
) -> None:
    """List backends, and how to install those that are missing."""
    from dataclasses import asdict

    from llara_cli.core.registry import availability

    found = availability()
    session.console.result({"backends": [asdict(item) for item in found]}, lambda: backend_table(found))


def backend_table(found: list[Availability]) -> Table:
    """A line per backend."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "backend", "package", "usable"):
        table.add_column(heading)
    for item in found:
        state = Text("yes", style="green") if item.usable else Text(f"no: {item.hint}", style="yellow")
        table.add_row(item.kind, item.name, item.package, state)
    return table
