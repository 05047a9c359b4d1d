"""``llara clean``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llara_cli.commands.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType


def clean(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and stop.")] = False,
) -> None:
    """Remove cached data and leftovers of interrupted commands."""
    from llara_cli.core import cleaning

    root = session.workspace.root
    found = cleaning.removable(session.workspace) if dry_run else cleaning.clean(session.workspace)
    files = [{"path": each.path.relative_to(root).as_posix(), "bytes": each.bytes} for each in found]
    total = sum(each.bytes for each in found)
    result = {"workspace": str(root), "dry_run": dry_run, "files": files, "bytes": total}
    session.console.result(result, lambda: _table(result))


def _table(result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from llara_cli.commands.render import facts, human_bytes

    done = "would be removed from" if result["dry_run"] else "removed from"
    if not result["files"]:
        return Text(f"nothing to remove in {result['workspace']}")
    rows = {each["path"]: human_bytes(each["bytes"]) for each in result["files"]}
    return Group(facts(rows), Text(f"{human_bytes(result['bytes'])} {done} {result['workspace']}"))
