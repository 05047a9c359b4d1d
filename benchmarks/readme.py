"""Write the figures of ``benchmarks/*.json`` into the README, between their markers.

    python benchmarks/readme.py [--check]

With ``--check`` nothing is written; the exit code is 1 where the README is behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def startup() -> str:
    """The table of ``startup.json``."""
    found = json.loads((HERE / "startup.json").read_text())
    return (
        "| `llara --help` | empty Typer app | median ratio |\n| ---: | ---: | ---: |\n"
        f"| {found['llara_ms']:.0f} ms | {found['empty_typer_ms']:.0f} ms | {found['ratio']:.2f} |"
    )


def filled(text: str) -> str:
    """The README with every table as the JSON files have it."""
    for name, table in {"startup": startup()}.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = marked.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def main(check: Annotated[bool, typer.Option("--check")] = False) -> None:
    """Fill the README, or tell whether it is behind."""
    text = README.read_text(encoding="utf-8")
    if check:
        raise typer.Exit(int(filled(text) != text))
    README.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
