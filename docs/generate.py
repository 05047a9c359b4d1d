"""Write the pages that repeat the code: ``docs/modules.md``. ``--check``: say whether they are up to date instead.

python docs/generate.py [--check]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
ROOMS = (
    "llara", "llara_cli", "llara_cli/commands", "llara_cli/pipelines", "llara_cli/evaluation", "llara_cli/retrieval",
    "llara_cli/training", "llara_cli/model", "llara_cli/cpu", "llara_cli/data", "llara_cli/core",
    "backends/llara_backends",
)  # fmt: skip
"""In the order of imports: a room imports from those below it, never from those above."""
HEAD = """# Modules

Made by `python docs/generate.py` from the first line of each module. Imports go down this page, never up.
"""


def first_line(path: Path) -> str:
    """Of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def modules() -> str:
    """The page of all modules, room by room."""
    parts = [HEAD]
    for room in ROOMS:
        folder = REPO / room
        rows = [
            f"| `{path.name}` | {first_line(path)} |"
            for path in sorted(folder.glob("*.py"))
            if not path.name.startswith("__")
        ]
        parts.append(f"\n## `{room}/`\n\n{first_line(folder / '__init__.py')}\n\n| module | |\n|---|---|\n")
        parts.append("\n".join(rows) + "\n")
    return "".join(parts)


PAGES = {"docs/modules.md": modules}


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; 1 where one is out of date."""
    out_of_date = []
    for name, write in PAGES.items():
        text = write()
        if (REPO / name).is_file() and (REPO / name).read_text(encoding="utf-8") == text:
            continue
        out_of_date.append(name)
        if "--check" not in arguments:
            (REPO / name).write_text(text, encoding="utf-8")
    if "--check" not in arguments or not out_of_date:
        return 0
    sys.stderr.write(f"out of date: {', '.join(out_of_date)}; run python docs/generate.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
