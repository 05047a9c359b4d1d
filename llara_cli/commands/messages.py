"""Translates the library's messages for the command line: a setting in backticks becomes its flag."""

from __future__ import annotations

import re
from functools import cache

from llara_cli.core.config import settings_of
from llara_cli.evaluation.config import CompareConfig, EvaluateConfig
from llara_cli.retrieval.config import EncodeConfig, IndexConfig, MineConfig, SearchConfig
from llara_cli.training.config import FinetuneConfig, PretrainConfig

CONFIGS: tuple[type, ...] = (
    PretrainConfig, FinetuneConfig, MineConfig, EncodeConfig, IndexConfig, SearchConfig, EvaluateConfig, CompareConfig
)  # fmt: skip
OTHER_FLAGS = {
    "vectors": "--from", "run": "--run", "qrels": "--qrels", "name": "--name", "restart": "--restart",
    "output": "--output", "queries": "--queries", "format": "--format", "workspace": "--workspace",
    "append": "--append", "remove": "--remove", "force": "--force", "plot": "--plot", "download": "--yes",
    "index": "--index", "file": "FILE",
    "json": "--json", "verify": "--verify", "dry_run": "--dry-run", "interactive": "--interactive",
}  # fmt: skip
"""Settings that are in no config object: name in Python -> flag."""
_SETTING = re.compile(r"`([a-z_][\w.]*)(?:=([^`]*)|\[([^`\]]*)\](?:=([^`]*))?)?`")
"""``name``, ``name=value``, ``name['key']`` or ``name['key']=value``, in backticks."""


@cache
def _flags() -> dict[str, tuple[str, str]]:
    """Name of a setting in Python -> its flag, and the flag that turns it off."""
    found = {name: (flag, "") for name, flag in OTHER_FLAGS.items()}
    for field in (field for config in CONFIGS for field in settings_of(config)):
        found.setdefault(field.name, (field.flag, field.setting.off))
    return found


def with_flags(text: str) -> str:
    """Replace each setting in backticks by its flag.

    >>> with_flags("`negatives=0` with `in_batch_negatives=False` leaves nothing")
    '--negatives 0 with --no-in-batch-negatives leaves nothing'
    """

    def flag(match: re.Match[str]) -> str:
        name, value, key, of_key = match.groups()
        if name not in _flags():
            return match[0]
        on, off = _flags()[name]
        if key is not None:
            return f"{on} {key.strip(chr(39) + chr(34))}={'...' if of_key is None else _bare(of_key)}"
        if value is None or value == "True":
            return on
        if value == "False":
            return off or f"no {on}"
        if value.startswith("{"):
            pairs = re.findall(r"'([^']*)': ('[^']*'|[^,}]*)", value)
            return " ".join(f"{on} {inner}={_bare(each)}" for inner, each in pairs)
        return f"{on} {_bare(value)}"

    return _SETTING.sub(flag, text)


def _bare(value: str) -> str:
    """A value as typed on the command line."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
