"""Where a model comes from: a workspace name, a local folder, a ``.gguf`` file, or a hub id."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llara_cli.artifacts import MANIFEST, sha256_file, slug
from llara_cli.console import UserError
from llara_cli.model.recipe import PAPER, RECIPE_SOURCES, Recipe, read_recipe
from llara_cli.workspace import Workspace

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.jinja", "adapter/*")
_MODULE_FILES = {".safetensors", ".json", ".model", ".jinja", ".txt", ".bin", ".py"}
"""Endings of what makes a sentence-transformers model, in its folder and in those of its modules."""
MODULES = "modules.json"
"""Names the modules of a sentence-transformers model and their folders."""
ADAPTER, BASE = "adapter", "base.json"
"""In a model that was saved as an adapter only: the adapter's folder, and what is written down of its base."""


@dataclass(frozen=True)
class ModelSource:
    """A model to load.

    Attributes:
        name: short, for naming artifacts.
        location: a folder, or a hub id.
        gguf_file: the file's name inside ``location``, for GGUF.
        saved_recipe: the recipe saved with (or recognised from) the checkpoint.
        remote_code: the user allowed the checkpoint's own Python code to run.
    """

    name: str
    location: str
    gguf_file: str | None = None
    saved_recipe: Recipe | None = None
    remote_code: bool = False

    @property
    def recipe(self) -> Recipe:
        """The recipe to encode with: the saved one, else the paper's."""
        return self.saved_recipe or PAPER

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine."""
        return Path(self.location).is_dir()

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter lies there, to be put on its base."""
        return (Path(self.location) / BASE).is_file()

    @property
    def path(self) -> str:
        """The argument that names this model again from anywhere."""
        base = str(Path(self.location).resolve()) if self.is_local else self.location
        return str(Path(base) / self.gguf_file) if self.gguf_file else base

    def argument(self, workspace: Workspace) -> str:
        """What names this model again: a workspace model by name (the workspace may move), any other by ``path``."""
        artifact = workspace.find("models", self.name)
        return self.name if artifact and Path(self.location) == artifact.path else self.path

    def fingerprint(self) -> str:
        """What tells this model from any other: sha256 over its files (a workspace model: over its manifest)."""
        folder = Path(self.location)
        if self.gguf_file:
            return sha256_file(folder / self.gguf_file)
        if (folder / MANIFEST).is_file():
            return sha256_file(folder / MANIFEST)
        if not folder.is_dir():
            return f"hub:{self.location}@{_hub_commit(self.location)}"
        if (folder / MODULES).is_file():
            named = _module_files(folder)
        else:
            files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
            named = [(file.name, file) for file in files]
        digests = "".join(f"{name} {sha256_file(file)}\n" for name, file in named)
        return hashlib.sha256(digests.encode()).hexdigest()


def _module_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a sentence-transformers model, those of its modules' folders too, with their paths in ``folder``."""
    every = sorted(file for file in folder.rglob("*") if file.suffix in _MODULE_FILES and file.is_file())
    named = ((file.relative_to(folder), file) for file in every)
    return [(path.as_posix(), file) for path, file in named if not any(part.startswith(".") for part in path.parts)]


def _hub_commit(repo_id: str) -> str:
    """The commit of a hub model in the local cache; loading it first puts it there."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo_id, name) for name in ("config.json", MODULES))
    return next((Path(cached).parent.name for cached in found if isinstance(cached, str)), "main")


def resolve(argument: str, workspace: Workspace, *, remote_code: bool = False) -> ModelSource:
    """The model that a command-line argument names.

    Raises ``UserError`` where it is none of: a finished model of the workspace, a folder with a ``config.json``, a
    ``.gguf`` file, something that could be a hub id.
    """
    if artifact := workspace.find("models", argument):
        return ModelSource(argument, str(artifact.path), None, read_recipe(artifact.path), remote_code)
    path = Path(argument).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(slug(path.stem), str(path.parent), path.name)
    if path.is_dir():
        return _from_folder(path, remote_code)
    if path.suffix == ".gguf" or path.is_absolute() or argument.startswith((".", "~")) or argument.count("/") > 1:
        raise UserError(f"no such model: {argument}")
    if not _HUB_ID.fullmatch(argument):
        raise UserError(f"{argument!r} is not a model name, folder, .gguf file or hub id")
    if (workspace.root / "models" / argument).is_dir():
        raise UserError(f"model {argument!r} is unfinished: run the command that began it again")
    return ModelSource(slug(argument.rpartition("/")[2]), argument, None, _hub_recipe(argument), remote_code)


def _hub_recipe(repo_id: str) -> Recipe | None:
    """The recipe of a hub model: its small files are fetched (or found in the hub's cache) and read like a folder's."""
    go_offline_if_unreachable()
    from transformers.utils.hub import cached_file

    found = None
    for name in RECIPE_SOURCES:
        try:
            path = cached_file(repo_id, name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # no such repository, or the hub is out of reach: loading it will say so
            return None
        found = path or found
    return read_recipe(Path(found).parent) if found else None


def go_offline_if_unreachable(timeout: float = 3.0) -> None:
    """Put the hub's client into its offline mode where the hub does not answer: it would retry for a minute otherwise.

    Behind a proxy nothing is tried: the client knows better.
    """
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return
    host = urlsplit(constants.ENDPOINT)
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True


def _from_folder(path: Path, remote_code: bool) -> ModelSource:
    if not any((path / name).is_file() for name in ("config.json", MODULES)):
        raise UserError(f"{path}: not a model folder (no config.json)")
    return ModelSource(slug(path.resolve().name), str(path), None, read_recipe(path), remote_code)
