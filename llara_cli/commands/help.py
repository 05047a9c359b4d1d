"""Layout of ``--help``: sections, wrapped by click's formatter, so that nothing is cut at 80 columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer

_LEFT = 30
"""Most columns of a name; after a longer one, the help begins on the next line."""
PANELS = (
    "Arguments", "Data", "Texts", "Model", "Index", "Change", "Search", "Many queries", "Vectors", "Negatives",
    "Negatives and loss", "Dev set", "Steps", "Optimizer", "LoRA", "Speed and memory", "Run", "Options", "Everywhere",
)  # fmt: skip
"""Order of the sections."""


def write_help(command: Any, ctx: Any, formatter: Any, about: str, examples: str) -> None:
    """Write the help of a verb: usage, description, examples, and its options by panel."""
    formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *map(_usage, _arguments(command))]))
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(about)
    if examples:
        with formatter.section(_heading("Examples")):
            for line in examples.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    _write_panels(command, ctx, formatter)


def write_group_help(group: Any, ctx: Any, formatter: Any, about: str, verbs: Mapping[str, tuple[str, str]]) -> None:
    """Write the help of the program; ``verbs``: name -> panel and line of help."""
    group.format_usage(ctx, formatter)
    with formatter.indentation():
        for paragraph in about.split("\n\n"):
            formatter.write_paragraph()
            formatter.write_text(paragraph)
    width = max(map(len, verbs))
    for panel in dict.fromkeys(panel for panel, _ in verbs.values()):
        rows = [(_name(f"{name:{width}}"), summary) for name, (at, summary) in verbs.items() if at == panel]
        with formatter.section(_heading(panel)):
            formatter.write_dl(rows)
    _write_panels(group, ctx, formatter)


def _arguments(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "argument"]


def _usage(argument: Any) -> str:
    """``CORPUS...``; an optional argument is in brackets."""
    return _called(argument) if argument.required else f"[{_called(argument)}]"


def _called(argument: Any) -> str:
    return str(argument.name).upper() + ("..." if argument.nargs == -1 else "")


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """Write arguments and options under their headings."""
    panels: dict[str, list[tuple[str, str]]] = {}
    parameters = sorted(command.get_params(ctx), key=lambda parameter: parameter.name != "model")
    for parameter in parameters:
        if record := _record(parameter, ctx):
            name, text = record
            panels.setdefault(_panel(parameter), []).append((name, text))
    width = min(_LEFT, max(len(name) for records in panels.values() for name, _ in records))
    for panel in sorted(panels, key=PANELS.index):
        with formatter.section(_heading(panel)):
            formatter.write_dl([(_name(f"{name:{width}}"), text) for name, text in panels[panel]], col_max=_LEFT)


def _panel(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    chosen: str | None = getattr(parameter, "rich_help_panel", None)
    return chosen or ("Everywhere" if parameter.name == "help" else "Options")


def _record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """Names and help of a parameter; None if it is hidden."""
    record: tuple[str, str] | None = parameter.get_help_record(ctx)
    if record is None:
        return None
    name, text = record
    if parameter.param_type_name == "argument":
        name = _called(parameter)
        text = re.sub(r"\s*\[required\]$", "", text)
    # click puts a default that is described, not a value, in parentheses of its own
    return name, re.sub(r"\[default: \((.*)\)\]$", r"[default: \1]", text, flags=re.DOTALL)


def _heading(text: str) -> str:
    return typer.style(text, bold=True)


def _name(text: str) -> str:
    return typer.style(text, fg="cyan")
