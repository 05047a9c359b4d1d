"""How long ``llara --help`` takes beside ``--help`` of an empty Typer app with the same verbs, interleaved.

    python benchmarks/startup.py [--runs 20] [--json FILE]

Prints the medians and their ratio; the ratio is what counts, seconds differ by machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from llara_cli.app import app

VERBS = tuple(typer.main.get_group(app).commands)


def empty_app() -> str:
    """Source of a Typer app with the verbs and nothing behind them."""
    verbs = "".join(f"@app.command()\ndef {verb}() -> None:\n    '''Do {verb}.'''\n\n" for verb in VERBS)
    return f"import typer\n\napp = typer.Typer(no_args_is_help=True)\n\n{verbs}app()\n"


def seconds(command: list[str]) -> float:
    """Wall-clock time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int = 20, as_json: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Measure both in turn, ``runs`` times."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text(empty_app())
        ours = [sys.executable, "-m", "llara_cli", "--help"]
        rival = [sys.executable, str(script), "--help"]
        for command in (ours, rival):
            seconds(command)
        pairs = [(seconds(ours), seconds(rival)) for _ in range(runs)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"llara --help {mine * 1000:.0f} ms, empty Typer app {theirs * 1000:.0f} ms, median ratio {ratio:.3f}")
    if as_json is not None:
        result = {"llara_ms": mine * 1000, "empty_typer_ms": theirs * 1000, "ratio": ratio, "runs": runs}
        as_json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
