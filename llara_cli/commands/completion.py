"""Shell completion of values: artifacts of the workspace, backends, data sets, benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import typer


def completer(complete: str = "", choices: tuple[str, ...] = ()) -> Callable[[typer.Context, str], list[str]] | None:
    """A function that completes values for Typer: ``choices``, or what ``complete`` names; None: nothing to offer."""
    if not complete and not choices:
        return None

    def offer(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")  # several names in one value
        names = choices or _names(complete, ctx)
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return offer


def _names(complete: str, ctx: Any) -> Iterable[str]:
    """Names of the existing ``models``, ``embeddings``, ``indexes``, ``results``, ``datasets`` or ``benchmarks``."""
    if complete in ("datasets", "benchmarks"):
        from llara_cli.evaluation.benchmarks import BENCHMARKS

        if complete == "benchmarks":
            return list(BENCHMARKS)
        chosen = [BENCHMARKS[name] for name in (ctx.params.get("benchmark"),) if name in BENCHMARKS]
        tasks = [task for benchmark in chosen or BENCHMARKS.values() for task in benchmark.tasks]
        return ["all", *dict.fromkeys(task.group for task in tasks)]
    from llara_cli.commands.session import workspace_path

    root = workspace_path(ctx.params.get("workspace"), ctx)
    pattern = "results/*/*" if complete == "results" else f"{complete}/*/manifest.json"
    found = (path if complete == "results" else path.parent for path in root.glob(pattern))
    return sorted({path.name for path in found if not path.name.startswith(".")})
