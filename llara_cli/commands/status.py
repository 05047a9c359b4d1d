"""``llara status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from llara_cli.commands import options as o

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llara_cli.artifacts import Artifact
    from llara_cli.workspace import Workspace


def status(
    ctx: typer.Context,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Artifacts of the workspace, their sizes and where they came from."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    from llara_cli.artifacts import KINDS

    found = session.workspace
    artifacts = [_row(found, artifact) for kind in KINDS for artifact in found.artifacts(kind)]
    unfinished = [f"{kind}/{path.name}" for kind in KINDS for path in found.unfinished(kind)]
    result = {"workspace": str(found.root), "artifacts": artifacts, "unfinished": unfinished}
    session.console.result(result, lambda: _table(result))


def _row(workspace: Workspace, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    settings = manifest["settings"]
    parents = {role: settings.get(role) or "?" for role in manifest["parents"]}
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "bytes": artifact.bytes,
        "counts": manifest["counts"],
        "parents": parents,
        "fingerprint": artifact.fingerprint,
    }


def _table(result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from llara_cli.commands.show import human_bytes

    table = Table(
        title=Text(f"workspace {result['workspace']}", style="bold"), title_justify="left", box=None, pad_edge=False
    )
    for heading in ("kind", "name", "size", "holds", "from"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for row in result["artifacts"]:
        counts = row["counts"]
        holds = ", ".join(
            f"{counts[key]:,} {word}" for key, word in (("steps", "steps"), ("count", "vectors")) if key in counts
        )
        origin = ", ".join(row["parents"].values())
        table.add_row(row["kind"], Text(row["name"]), human_bytes(row["bytes"]), holds, Text(origin))
    hint = [] if result["artifacts"] else ["nothing yet: llara pretrain CORPUS makes the first model"]
    rest = [f"unfinished: {name} (the same command resumes it)" for name in result["unfinished"]]
    return Group(table, *map(Text, hint + rest))
