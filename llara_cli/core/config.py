"""Settings as frozen dataclasses, from which flags, keys of ``llara.toml`` and manifests are made.

A field is written as ``name: Annotated[TYPE, Setting("Help.")] = DEFAULT``. A ``Literal`` type lists the
choices; a nested dataclass is a group of settings (``Annotated[LoraConfig, Group("LoRA")]``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from llara_cli.core.errors import UserError
from llara_cli.core.names import expand_home

DEFAULT_LENGTH = 512
"""Default tokens of a text that is encoded, prompt included, if the model has that many positions."""
MODEL_HELP = "A workspace name, a folder, a hub id or a .gguf file."
Role = Literal["passage", "query"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["auto", "varlen", "flex", "dense"]
Layout = Literal["auto", "packed", "bucketed"]
Parameters = Mapping[str, int | float | str]
"""Parameters of an index library, by the backend's names."""
CountT = TypeVar("CountT", int, int | None)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_KNOWN: dict[type, tuple[Field, ...]] = {}


@dataclass(frozen=True)
class Setting:
    """A setting's help, flag and other properties besides its type and default.

    Attributes:
        help: one sentence or noun phrase, for ``--help`` and the API's documentation.
        flag: its flag; empty: ``--`` and the field's name with dashes.
        off: for a ``bool``: the flag that turns it off; empty: there is none.
        short: a one-letter flag.
        default: how the value is chosen when it is None.
        panel: the heading under which ``--help`` lists it.
        complete: source of shell completions: ``models``, ``indexes``, ``training backends`` ...
        choices: suggested values, where others are allowed too.
        positive: whether a number must be greater than 0.
        recorded: its key in manifests; None: its path (``lora.rank``); empty: it does not change what is made.
        repeated: whether the flag is repeated for several values, instead of one flag with commas.
    """

    help: str
    flag: str = ""
    off: str = ""
    short: str = ""
    default: str = ""
    panel: str = ""
    complete: str = ""
    choices: tuple[str, ...] = ()
    positive: bool = False
    recorded: str | None = None
    repeated: bool = False
    metavar: str = ""


@dataclass(frozen=True)
class Group:
    """A nested dataclass of settings; ``panel``: the heading under which ``--help`` lists them."""

    panel: str


class Field(NamedTuple):
    """A setting of a config class; ``path``: attribute names from the outermost object, as ``("lora", "rank")``."""

    path: tuple[str, ...]
    kind: Any
    setting: Setting
    panel: str
    default: Any

    @property
    def name(self) -> str:
        """Its name in errors: ``lora.rank``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """Its flag: ``--lora-rank``."""
        return self.setting.flag or f"--{self.path[-1].replace('_', '-')}"

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values allowed; empty: any of the type."""
        inner = without_none(self.kind)
        while get_origin(inner) is not Literal:
            inside = get_args(inner)
            if not inside:
                return ()
            inner = without_none(inside[0])
        return get_args(inner)

    def owner(self, config: Any) -> Any:
        """The object that has it: a config object, or one of its groups."""
        for name in self.path[:-1]:
            config = getattr(config, name)
        return config

    def value(self, config: Any) -> Any:
        """Its value in a config object."""
        return getattr(self.owner(config), self.path[-1])


def settings_of(config: type) -> tuple[Field, ...]:
    """Every setting of a config class, including those of its groups, in the order of definition."""
    if config not in _KNOWN:
        _KNOWN[config] = tuple(_fields(config, (), ""))
    return _KNOWN[config]


def _fields(config: type, path: tuple[str, ...], panel: str) -> Iterator[Field]:
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, note = get_args(hint)[:2]
        here = (*path, field.name)
        if isinstance(note, Group):
            yield from _fields(kind, here, note.panel)
        elif isinstance(note, Setting):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Field(here, kind, note, note.panel or panel, default)


def check_values(config: Any) -> None:
    """Raise ``UserError`` for a value of a wrong type, not among its choices, or not positive where it must be.

    Lists become tuples, and strings of paths ``Path``, as the object is frozen.
    """
    _check_groups(config)
    for field in settings_of(type(config)):
        value = field.value(config)
        if value is None:
            continue
        value = _typed(field.name, without_none(field.kind), value)
        object.__setattr__(field.owner(config), field.path[-1], value)
        for each in value if isinstance(value, tuple) else (value,):
            if field.choices:
                refuse_unknown(field.name, each, field.choices)
            if field.setting.positive:
                refuse_nonpositive(field.name, each)


def _check_groups(config: Any) -> None:
    hints = get_type_hints(config.__class__)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint) and not isinstance(value, hint):
            raise UserError(f"`{field.name}` must be {hint.__name__}(...), not {shown(value)}")
        if is_dataclass(value):
            _check_groups(value)


_SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str | Path, "a string"),
    Path: (str | Path, "a path"),
    Mapping: (Mapping, "a mapping of names to values"),
}
"""Type of a setting -> types that its values may have, and how these are called in errors."""


def _typed(name: str, kind: Any, value: Any) -> Any:
    """A value of the setting ``name`` as its type has it. Raises ``UserError`` for a value of another type."""
    origin = get_origin(kind) or kind
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"`{name}` must be a list, not {shown(value)}")
        return tuple(_typed(name, get_args(kind)[0], each) for each in value)
    if origin not in _SCALARS:
        return value
    allowed, wanted = _SCALARS[origin]
    if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
        raise UserError(f"`{name}` must be {wanted}, not {shown(value)}")
    if type(value) in (int, float):
        return value  # as it was written: 1 is not 1.0 in a manifest
    if origin is Path:
        return Path(expand_home(value))
    return value if origin in (bool, Mapping) else origin(value)


def without_none(kind: Any) -> Any:
    """``T`` of ``T | None``; other types as they are."""
    inside = [each for each in get_args(kind) if each is not NoneType]
    return inside[0] if NoneType in get_args(kind) and len(inside) == 1 else kind


def shown(value: Any) -> str:
    """A value in an error: its ``repr``, shortened if it is long."""
    return _SHORT.repr(value)


def refuse_unknown(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ``UserError`` for a value of the setting ``name`` that is not one of ``choices``."""
    if value not in choices:
        *others, last = map(str, choices)
        known = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"`{name}` must be {known}, not {shown(value)}")


def checked_count(name: str, value: CountT) -> CountT:
    """The value of the setting ``name``, a whole number above 0, or None. Raises ``UserError`` for another one."""
    if value is None:
        return value
    count: CountT = _typed(name, int, value)
    refuse_nonpositive(name, count)  # type: ignore[arg-type]
    return count


def refuse_nonpositive(name: str, value: float) -> None:
    """Raise ``UserError`` if the value of the setting ``name`` is not positive and finite."""
    if not 0 < value < math.inf:
        raise UserError(f"`{name}` must be positive{' and finite' if value == math.inf else ''}, not {value}")


def refuse_bad_seed(seed: int) -> None:
    """Raise ``UserError`` for a seed that some library does not accept."""
    if not 0 <= seed < 2**31:
        raise UserError(f"`seed` must lie between 0 and {2**31 - 1}, not {seed}")


def recorded(config: Any) -> dict[str, Any]:
    """The settings in a manifest: flat JSON values of those that change what is made."""
    return {
        name: field.value(config)
        for field in settings_of(type(config))
        if (name := field.name if field.setting.recorded is None else field.setting.recorded)
    }


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, with RepLLaMA's values (arXiv 2310.08319).

    >>> from llara import FinetuneConfig, LoraConfig
    >>> FinetuneConfig(lora=LoraConfig(rank=16, alpha=32, targets=("q_proj", "v_proj"))).lora.dropout
    0.1
    """

    rank: Annotated[
        int, Setting("Rank of the adapters.", flag="--lora-rank", recorded="adapter.rank", positive=True)
    ] = 64
    alpha: Annotated[
        int, Setting("Scale of the adapters.", flag="--lora-alpha", recorded="adapter.alpha", positive=True)
    ] = 16
    dropout: Annotated[
        float, Setting("Dropout before the adapters.", flag="--lora-dropout", recorded="adapter.dropout")
    ] = 0.1
    targets: Annotated[
        tuple[str, ...] | None,
        Setting(
            "Names of the layers that get an adapter, as q_proj,v_proj.",
            flag="--lora-targets",
            recorded="adapter.targets",
            default="all linear layers",
        ),
    ] = None
    merge: Annotated[
        bool, Setting("Save a merged checkpoint beside the adapter.", off="--no-merge", recorded="adapter.merge")
    ] = True

    def check(self, backend: str) -> None:
        """Raise ``UserError`` for values that do not go together; ``backend``: the training backend."""
        if not 0 <= self.dropout < 1:
            raise UserError(f"`lora.dropout` must lie in [0, 1), not {self.dropout}")
        if self.targets is not None and backend == "full":
            raise UserError("`lora.targets` is for `backend='lora'` or qlora: full training has no adapters")
        if self.targets is not None and not all(self.targets):
            raise UserError("`lora.targets`: write names of layers, separated by commas, as in q_proj,v_proj")
