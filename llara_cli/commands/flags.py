"""Command-line flags from settings: a config dataclass becomes options, and their values a config object.

A verb is a function of a session, its arguments and a config object. ``as_command`` turns it into the function of plain
values that Typer needs.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.messages import with_flags
from llara_cli.commands.session import GLOBAL_FLAGS, Session, open_session
from llara_cli.core.config import Field, settings_of, without_none
from llara_cli.core.errors import UserError
from llara_cli.core.names import check_name

METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_COMMA = re.compile(r",(?![^(]*\))")


def _checked_name(name: str | None) -> str | None:
    return None if name is None else check_name(name)


Name = Annotated[
    str | None,
    typer.Option(
        help="Name of the artifact.", show_default="derived from the inputs", metavar="NAME", callback=_checked_name,
        rich_help_panel="Run",
    ),
]  # fmt: skip
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Build again; the old artifact stays until the new one is finished.", rich_help_panel="Run"
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan (memory, steps, time, disk) and stop.", rich_help_panel="Run"),
]
TableFormat = Annotated[
    str,
    typer.Option("--format", help="Format of the tables.", metavar="[table|markdown|latex|csv|json]",
                 autocompletion=completer(choices=("table", "markdown", "latex", "csv", "json"))),
]  # fmt: skip


def as_command(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as a function of plain values, from whose signature Typer makes options."""
    hints = get_type_hints(verb, include_extras=True)
    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if hint in (Session, typer.Context):
            continue
        if _is_config(hint):
            parameters += options(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in GLOBAL_FLAGS.items()
    ]

    @functools.wraps(verb)
    def command(ctx: typer.Context, **values: Any) -> None:
        session = open_session(ctx, with_flags, **{name: values.pop(name) for name in GLOBAL_FLAGS})
        given: dict[str, Any] = {}
        for name, hint in hints.items():
            if hint is Session:
                given[name] = session
            elif hint is typer.Context:
                given[name] = ctx
            elif _is_config(hint):
                given[name] = config_of(hint, values)
            elif name in values:
                given[name] = values[name]
        verb(**given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    del command.__wrapped__
    return command


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def options(config: type) -> list[inspect.Parameter]:
    """An option for each setting of a config class."""
    return [_option(field) for field in settings_of(config)]


def parameter_name(field: Field) -> str:
    """The name of a setting's parameter: ``lora.rank`` is ``lora_rank``."""
    return field.flag.removeprefix("--").replace("-", "_") if len(field.path) > 1 else field.path[-1]


def _option(field: Field) -> inspect.Parameter:
    setting, kind = field.setting, plain_type(field)
    flags = field.flag + (f"/{setting.off}" if setting.off else "")
    names = [flags, *([setting.short] if setting.short else [])]
    default = _typed_default(field, kind)
    choices = field.choices or setting.choices or _registered(setting.complete)
    shown = setting.default or (_shown(field.default) if not _is_empty(field.default) else False)
    option = typer.Option(
        *names,
        help=with_flags(setting.help),
        metavar=None if kind is bool else setting.metavar or _metavar(kind, choices),
        show_default=with_flags(shown) if isinstance(shown, str) else shown,
        rich_help_panel=field.panel or None,
        autocompletion=completer(setting.complete, tuple(map(str, choices))),
    )
    optional = kind if default is not None else kind | None
    return inspect.Parameter(
        parameter_name(field), inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[optional, option], default=default
    )


def _registered(complete: str) -> tuple[str, ...]:
    """Names of the registered backends, for settings that take one."""
    from llara_cli.core import registry

    kind, _, what = complete.partition(" ")
    return tuple(registry.names(kind)) if what == "backends" else ()


def _metavar(kind: Any, choices: tuple[Any, ...]) -> str:
    return f"[{'|'.join(map(str, choices))}]" if choices else METAVARS.get(kind, "TEXT")


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ((), {})


def _shown(default: Any) -> str | bool:
    """A default as ``--help`` shows it."""
    if default is True:
        return "on"
    return ",".join(map(str, default)) if isinstance(default, tuple) else True


def plain_type(field: Field) -> Any:
    """The type of the option: for a tuple a text with commas, or repeated values; for a mapping repeated texts."""
    kind = without_none(field.kind)
    if get_origin(kind) is tuple:
        return list[str] if field.setting.repeated else str
    if _is_mapping(kind):
        return list[str]
    return str if field.choices else kind


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _typed_default(field: Field, kind: Any) -> Any:
    default = field.default
    if kind == list[str]:
        return None
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    return default


def config_of(config: type, values: dict[str, Any]) -> Any:
    """Make the config object from the options' values, and remove these from ``values``.

    Raises ``UserError`` for an invalid value.
    """
    by_path = {field.path: _value(field, values.pop(parameter_name(field))) for field in settings_of(config)}
    return _build(config, by_path, ())


def _build(config: type, by_path: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    given: dict[str, Any] = {}
    groups = dict.fromkeys(each[: len(path) + 1] for each in by_path if each[: len(path)] == path)
    hints = get_type_hints(config)
    for here in groups:
        name = here[-1]
        given[name] = by_path[here] if here in by_path else _build(hints[name], by_path, here)
    return config(**given)


def _value(field: Field, typed: Any) -> Any:
    """The setting's value for the text of an option."""
    kind = without_none(field.kind)
    if _is_mapping(kind):
        return dict(_pair(field, item) for item in typed or ())
    if get_origin(kind) is not tuple:
        return typed
    if typed is None:
        return () if kind is field.kind else None
    items = typed if isinstance(typed, list) else [item.strip() for item in _COMMA.split(typed)]
    of_items = get_args(kind)[0]
    if of_items is not int:
        return tuple(items)
    try:
        return tuple(map(int, items))
    except ValueError as error:
        raise UserError(f"{field.flag} {typed}: write whole numbers, as in 768,256,64") from error


def _pair(field: Field, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"{field.flag} {item}: write it as key=value")
    return key, value
