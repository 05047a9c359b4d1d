"""``llara status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llara_cli.commands.session import Session
from llara_cli.core.errors import LlaraError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llara_cli.core.artifacts import Artifact


def status(
    session: Session,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file against the size and sha256 in its manifest.")
    ] = False,
) -> None:
    """List the workspace's artifacts, their sizes, and what they were made from."""
    from llara_cli.core.artifacts import KINDS, size_on_disk
    from llara_cli.core.verify import damaged_manifests
    from llara_cli.core.workspace import CACHE

    found = session.workspace
    artifacts = [artifact for kind in KINDS for artifact in found.artifacts(kind)]
    unreadable = damaged_manifests(artifacts)
    sound = [artifact for artifact in artifacts if artifact.path not in unreadable]
    damaged = [*unreadable.values(), *(_verified(session, sound) if verify else ())]
    result = {
        "workspace": str(found.root),
        "artifacts": [_row(artifact) for artifact in sound],
        "unfinished": [f"{kind}/{path.name}" for kind in KINDS for path in found.unfinished(kind)],
        "damaged": damaged,
        "cache": {"path": str(found.root / CACHE), "bytes": size_on_disk(found.root / CACHE)},
    }
    session.console.result(result, lambda: _table(result, verify))
    if verify and damaged:
        raise LlaraError(f"damaged: {', '.join(problem.partition(': ')[0] for problem in damaged)}")


def _verified(session: Session, artifacts: list[Artifact]) -> list[str]:
    """What is wrong with the artifacts' files, a line per file."""
    from llara_cli.core.verify import megabytes, verify

    with session.console.bar("verifying", megabytes(artifacts), unit="MB") as bar:
        return [problem for artifact in artifacts for problem in verify(artifact, bar.advance)]


def _row(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    settings = manifest["settings"]
    parents = {role: role.partition("/")[2] or settings.get(role) or "?" for role in manifest["parents"]}
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "bytes": artifact.bytes,
        "counts": manifest["counts"],
        "parents": parents,
        "fingerprint": artifact.fingerprint,
    }


_HOLDS = {"steps": "steps", "count": "vectors", "negatives": "negatives", "documents": "documents"}
"""Counts of a manifest that the table shows -> their labels."""


def _table(result: dict[str, Any], verified: bool) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from llara_cli.commands.render import human_bytes

    table = Table(
        title=Text(f"workspace {result['workspace']}", style="bold"), title_justify="left", box=None, pad_edge=False
    )
    for heading in ("kind", "name", "size", "holds", "from"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for row in result["artifacts"]:
        counts = row["counts"]
        holds = ", ".join(f"{counts[key]:,} {word}" for key, word in _HOLDS.items() if key in counts)
        origin = ", ".join(row["parents"].values())
        table.add_row(row["kind"], Text(row["name"]), human_bytes(row["bytes"]), holds, Text(origin))
    hint = [] if result["artifacts"] else ["nothing yet: llara pretrain CORPUS makes the first model"]
    rest = [f"unfinished: {name} (the same command resumes it)" for name in result["unfinished"]]
    if cached := result["cache"]["bytes"]:
        rest.append(f"cache: {human_bytes(cached)} in {result['cache']['path']} (llara clean removes it)")
    damage = [Text(f"damaged: {problem}", style="red") for problem in result["damaged"]]
    good = ["verified: every file is as it was written"] if verified and not damage else []
    return Group(table, *map(Text, hint + rest), *damage, *map(Text, good))
