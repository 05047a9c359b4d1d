"""The origin recorded with exported vectors: model, fingerprint, role and encoder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from llara_cli.core.artifacts import Artifact
from llara_cli.core.errors import UserError

METADATA = b"llara"
"""The key of the origin in the metadata of a ``.parquet`` file's schema."""

ENDINGS = (".npy", ".parquet")
"""Endings of the files that vectors are exported to."""


def ids_path(file: Path) -> Path:
    """The file of a ``.npy`` file's ids, one per line."""
    return file.with_name(file.name + ".ids.txt")


def refuse_ending(file: Path) -> None:
    """Raise ``UserError`` for a file that is named neither ``.npy`` nor ``.parquet``."""
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{file}: name it {' or '.join(ENDINGS)}: the ending tells the format")


@dataclass(frozen=True)
class Origin:
    """The origin of vectors.

    Attributes:
        model: the model's name.
        source: an argument that names the model: a name in the workspace, a path, or a hub id.
        fingerprint: fingerprint of the model.
        role: ``passage`` or ``query``.
        encoder: the encoder backend.
        vectors: sha256 of the file of vectors if the origin is in a file beside it; "" if it is in the file itself.
    """

    model: str
    source: str
    fingerprint: str
    role: str
    encoder: str
    vectors: str = ""

    @classmethod
    def of(cls, embeddings: Artifact) -> Origin:
        """The origin of embeddings of the workspace, from their manifest."""
        made = embeddings.manifest
        settings = made["settings"]
        return cls(settings["model"], settings["source"], made["parents"]["model"], settings["as"], settings["encoder"])

    @classmethod
    def parse(cls, text: str | bytes, where: Path) -> Origin:
        """Read what ``as_json`` wrote. Raises ``UserError`` for anything else."""
        try:
            values = json.loads(text)
            origin = cls(*(_string(values[field.name]) for field in fields(cls)))
            if origin.role not in ("passage", "query"):
                raise ValueError(origin.role)
            return origin
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: the record of the vectors' model is damaged: export them again") from error

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def origin_path(file: Path) -> Path:
    """The file that records the origin of a ``.npy`` file's vectors."""
    return file.with_name(file.name + ".model.json")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
