"""Finds backends by entry point, and the command that installs a missing one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from llara_cli.core.errors import LlaraError, UserError

GROUPS = {"training": "llara.training", "encoder": "llara.encoder", "index": "llara.index"}
EXTRAS = {"faiss": "faiss", "hnsw": "hnsw", "qlora": "qlora", "sentence-transformers": "sentence-transformers"}
"""Backend name -> the extra of this package that it needs."""
OWN = {
    "training": {
        "full": "llara_backends.train_full:FullBackend",
        "lora": "llara_backends.train_lora:LoraBackend",
        "qlora": "llara_backends.train_qlora:QloraBackend",
    },
    "encoder": {
        "torch": "llara_backends.encode_torch:TorchEncoder",
        "sentence-transformers": "llara_backends.encode_sentence_transformers:SentenceTransformersEncoder",
    },
    "index": {
        "exact": "llara_backends.index_exact:ExactIndex",
        "faiss": "llara_backends.index_faiss:FaissIndex",
        "hnsw": "llara_backends.index_hnsw:HnswIndex",
    },
}
"""The entry points of pyproject.toml, for a source tree that is used without installing it."""


def install_hint(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'llara[{extra}]'"


def missing_extra(what: str, extra: str) -> UserError:
    """The error for something that an extra installs."""
    return UserError(f"{what} is not installed: {install_hint(extra)}")


def _points(kind: str) -> dict[str, EntryPoint]:
    own = {name: EntryPoint(name, value, GROUPS[kind]) for name, value in OWN[kind].items()}
    return own | {point.name: point for point in entry_points(group=GROUPS[kind])}


def names(kind: str) -> list[str]:
    """Backends of a kind that are registered, whether or not their libraries are installed."""
    return sorted(_points(kind))


def load(kind: str, name: str) -> Any:
    """The backend class called ``name``.

    Raises ``UserError`` with the known names if it is unknown, and with the install command if its library is missing;
    ``LlaraError`` with the reason if importing it fails.
    """
    points = _points(kind)
    if name not in points:
        known = (f"{point} ({install_hint(EXTRAS[point])})" if point in EXTRAS else point for point in sorted(points))
        raise UserError(f"unknown {kind} backend {name!r}: known are {', '.join(known)}")
    try:
        return points[name].load()
    except ImportError as error:
        if name in EXTRAS:
            raise missing_extra(f"the {kind} backend {name!r}", EXTRAS[name]) from error
        raise UserError(f"the {kind} backend {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise LlaraError(
            f"the {kind} backend {name!r} (package {_package(points[name])}) cannot be imported:"
            f" {type(error).__name__}: {reason}"
        ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "llara"


@dataclass(frozen=True)
class Availability:
    """Whether a backend is usable here, and if not, how to make it so."""

    kind: str
    name: str
    package: str
    usable: bool
    hint: str


def availability() -> list[Availability]:
    """Every registered backend with its state, for ``llara backends`` and ``llara doctor``."""
    found = []
    for kind in GROUPS:
        for name, point in sorted(_points(kind).items()):
            try:
                load(kind, name)
            except LlaraError as error:
                found.append(Availability(kind, name, _package(point), False, str(error).partition(": ")[2]))
            else:
                found.append(Availability(kind, name, _package(point), True, ""))
    return found
