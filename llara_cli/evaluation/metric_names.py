"""Names of metrics in ir_measures' spelling, and the provider that computes each."""

from __future__ import annotations

import ast
import re
from typing import Any

import ir_measures
from ir_measures import providers

from llara_cli.core.errors import UserError

EXAMPLES = "nDCG@10, R@100, MRR@10, AP, P@5, R(rel=2)@100, Success@5"
_SPELLING = re.compile(r"(\w+)(?:\((.*)\))?(?:@([\d.]+))?")
"""``nDCG``, ``R@100``, ``R(rel=2)@100``. Parsed here, as ir_measures' parser does not run on Python 3.14."""
_PARAMETER = re.compile(r"\s*(\w+)\s*=\s*(\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^,{]+?)\s*(?:,|$)")
_COMMA = re.compile(r",(?![^(]*\))")
"""A comma between metrics, not inside parentheses."""
_LARGEST = 1_000_000
_MEASURES = {
    name.casefold(): measure
    for name, measure in ir_measures.measures.registry.items()
    if not name.startswith("Num")  # counts, not metrics from 0 to 1
}
_ORDER = ("pytrec_eval", "judged", "msmarco", "gdeval", "accuracy", "compat", "cwl_eval", "pyndeval")
PROVIDERS = providers.FallbackProvider([providers.registry[name] for name in _ORDER])
"""Always in this order, so that values do not depend on what else is installed."""


def parse_metrics(listed: str) -> tuple[str, ...]:
    """Split comma-separated metrics. Raises ``UserError`` for an unknown one, or none."""
    names = tuple(dict.fromkeys(item.strip() for item in _COMMA.split(listed) if item.strip()))
    if not names:
        raise UserError(f"no metric given; examples: {EXAMPLES}")
    for name in names:
        parse(name)
    return names


def parse(name: str) -> Any:
    """ir_measures' measure of that name. Raises ``UserError`` if it is unknown or cannot be computed here."""
    spelling = _SPELLING.fullmatch(name.strip())
    measure = _MEASURES.get(spelling[1].casefold()) if spelling else None
    if spelling is None or measure is None:
        raise UserError(f"unknown metric {name!r}; examples: {EXAMPLES}")
    given = _parameters(name, spelling[2] or "")
    given |= {measure.AT_PARAM: ast.literal_eval(spelling[3])} if _is_number(spelling[3]) else {}
    if spelling[3] is not None and not _is_number(spelling[3]):
        raise UserError(f"metric {name!r}: {spelling[3]!r} is not a number")
    for key, value in given.items():
        _check(name, measure, key, value)
    return _supported(name, measure(**given))


def cutoff(name: str) -> int | None:
    """The cutoff of a metric in hits; None: all hits count. Raises ``UserError`` for an unknown metric."""
    found = parse(name).params.get("cutoff")
    return int(found) if found is not None else None


def _is_number(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _parameters(name: str, listed: str) -> dict[str, Any]:
    """The parameters in a metric's parentheses: ``rel=2, dcg='exp-log2'``."""
    found: dict[str, Any] = {}
    place = 0
    while place < len(listed):
        match = _PARAMETER.match(listed, place)
        if match is None:
            raise UserError(f"metric {name!r}: write parameters as in R(rel=2)@100")
        try:
            found[match[1]] = ast.literal_eval(match[2])
        except (ValueError, SyntaxError) as error:
            raise UserError(f"metric {name!r}: {match[2]!r} is not a value: quote text: dcg='exp-log2'") from error
        place = match.end()
    return found


def _check(name: str, measure: Any, key: str, value: Any) -> None:
    """Raise ``UserError`` for an unknown parameter of the measure, or a bad value."""
    known = measure.SUPPORTED_PARAMS
    if key not in known:
        takes = ", ".join(known) or "none"
        raise UserError(f"metric {name!r} takes no {key!r}; it takes {takes}")
    kind = known[key].dtype
    if not isinstance(value, (int, float) if kind is float else kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"metric {name!r}: {key} must be {_KINDS.get(kind, kind.__name__)}, not {value!r}")
    # trec_eval does not refuse a cutoff of 0: it aborts the process
    if kind is int and not (_least(key) <= value <= _LARGEST):
        raise UserError(f"metric {name!r}: its numbers must lie between {_least(key)} and {_LARGEST}")
    if isinstance(value, dict) and not all(_is_grade(number) for pair in value.items() for number in pair):
        raise UserError(f"metric {name!r}: {key} must be whole numbers from {-_LARGEST} to {_LARGEST}: {{grade: gain}}")


def _is_grade(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _least(key: str) -> int:
    return 0 if key == "min_rel" else 1


_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "quoted text", dict: "{grade: gain}"}


def _supported(name: str, measure: Any) -> Any:
    """``measure`` itself. Raises ``UserError`` if it lacks a parameter, or no provider here computes it."""
    try:
        supported = PROVIDERS.supports(measure)
    except (AssertionError, ValueError) as error:
        raise UserError(f"metric {name!r} has no cutoff, or takes none; examples: {EXAMPLES}") from error
    if not supported:
        raise UserError(f"metric {name!r} cannot be computed here{_who(measure)}; examples: {EXAMPLES}")
    return measure


def is_of_gdeval(measure: Any) -> bool:
    """Whether TREC's script ``gdeval.pl`` computes it: ERR@k, and nDCG with ``dcg='exp-log2'``."""
    able = (name for name in _ORDER if providers.registry[name].is_available())
    return next((name for name in able if providers.registry[name].supports(measure)), "") == "gdeval"


def _who(measure: Any) -> str:
    """The package that would compute a measure, if it is not installed; else ""."""
    packages = {"cwl_eval": "cwl-eval", "pyndeval": "pyndeval"}
    absent = [
        package
        for provider, package in packages.items()
        if not providers.registry[provider].is_available()
        and any(str(measure).startswith(str(kind.NAME)) for kind in providers.registry[provider].SUPPORTED_MEASURES)
    ]
    return f" (pip install {absent[0]} would)" if absent else ""
