"""Where a model comes from: a workspace name, a local folder, a ``.gguf`` file, or a hub id."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llara_cli.core.artifacts import MANIFEST
from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_digest
from llara_cli.core.names import expand_home, slug
from llara_cli.core.workspace import Workspace
from llara_cli.model import gguf_files
from llara_cli.model.recipe import PAPER, RECIPE_SOURCES, Recipe, read_recipe

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.jinja", "adapter/*")
_MODULE_FILES = {".safetensors", ".json", ".model", ".jinja", ".txt", ".bin", ".py"}
"""Endings of the files of a sentence-transformers model."""
MODULES = "modules.json"
"""Names the modules of a sentence-transformers model and their folders."""
TORCH, SENTENCE_TRANSFORMERS = "torch", "sentence-transformers"
"""Names of the encoder backends that models are loaded with by default."""
_HUB, _UNKNOWN_COMMIT = "hub:", "main"
"""Prefix of a hub model's fingerprint, and its last part where none of the model's files is in the local cache."""
ADAPTER, BASE = "adapter", "base.json"
"""In a model saved as an adapter only: the adapter's folder, and the record of its base."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter that peft saved."""
_FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class ModelSource:
    """A model to load.

    Attributes:
        name: short, for naming artifacts.
        location: a folder, or a hub id.
        gguf_file: name of the GGUF file inside ``location``; the first part of a split one; None: not a GGUF.
        saved_recipe: the recipe saved with (or recognized from) the checkpoint.
        remote_code: the user allowed the checkpoint's own Python code to run.
        base: the base of an adapter saved by peft; None: the model is not such an adapter.
    """

    name: str
    location: str
    gguf_file: str | None = None
    saved_recipe: Recipe | None = None
    remote_code: bool = False
    base: ModelSource | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe to encode with: the saved one if there is one, else the paper's."""
        return self.saved_recipe or PAPER

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""
        return Path(self.location).is_dir()

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter saved by llara, to be merged into its base."""
        return (Path(self.location) / BASE).is_file()

    def file(self, name: str) -> Path | None:
        """A file of the model, in its folder or fetched from the hub; None if there is none."""
        if not self.is_local:
            return hub_file(self.location, name)
        path = Path(self.location) / name
        return path if path.is_file() else None

    @property
    def has_modules(self) -> bool:
        """Whether it is a sentence-transformers model, by its ``modules.json``."""
        return not self.gguf_file and self.base is None and self.file(MODULES) is not None

    @property
    def usual_encoder(self) -> str:
        """The encoder backend to load it with: sentence-transformers for a model of that library, else torch."""
        return SENTENCE_TRANSFORMERS if self.saved_recipe is None and self.has_modules else TORCH

    @property
    def tokenizer_location(self) -> str:
        """Folder or hub id of its tokenizer, which may be the base's for an adapter."""
        if self.base is None or any(self.file(name) is not None for name in _TOKENIZER_FILES):
            return self.location
        return self.base.tokenizer_location

    @property
    def gguf_parts(self) -> list[Path]:
        """The files of a GGUF: one, or the parts that it was split into. Raises ``UserError`` if one is missing."""
        assert self.gguf_file is not None
        return gguf_files.parts(Path(self.location) / self.gguf_file)

    @property
    def path(self) -> str:
        """An argument that names this model from any working directory."""
        base = str(Path(self.location).resolve()) if self.is_local else self.location
        return str(Path(base) / self.gguf_file) if self.gguf_file else base

    def argument(self, workspace: Workspace) -> str:
        """An argument that names this model: for a workspace model its name (the workspace may move), else ``path``."""
        artifact = workspace.find("models", self.name)
        is_it = artifact is not None and Path(self.location).resolve() == artifact.path.resolve()
        return self.name if is_it else self.path

    def fingerprint(self) -> str:
        """Identity of the model: sha256 over its files, or over a workspace model's manifest; a hub model's commit."""
        if self.base is not None:
            own, base = replace(self, base=None).fingerprint(), self.base.fingerprint()
            return (
                f"{own} on {base}"
                if own.startswith(_HUB)
                else hashlib.sha256(f"{own} on {base}\n".encode()).hexdigest()
            )
        folder = Path(self.location)
        if self.gguf_file:
            of_parts = [input_digest(part) for part in self.gguf_parts]
            return of_parts[0] if len(of_parts) == 1 else hashlib.sha256("\n".join(of_parts).encode()).hexdigest()
        if (folder / MANIFEST).is_file():
            return input_digest(folder / MANIFEST)
        if not folder.is_dir():
            return f"{_HUB}{self.location}@{_hub_commit(self.location)}"
        if (folder / MODULES).is_file():
            named = _module_files(folder)
        else:
            files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file()})
            named = [(file.name, file) for file in files]
        digests = "".join(f"{name} {input_digest(file)}\n" for name, file in named)
        return hashlib.sha256(digests.encode()).hexdigest()


def _module_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a sentence-transformers model, those of its modules' folders too, with their paths in ``folder``."""
    every = sorted(file for file in folder.rglob("*") if file.suffix in _MODULE_FILES and file.is_file())
    named = ((file.relative_to(folder), file) for file in every)
    return [(path.as_posix(), file) for path, file in named if not any(part.startswith(".") for part in path.parts)]


_DATED = ("config.json", MODULES, PEFT_CONFIG)
"""Files of a hub model, of which at least one exists: its path in the cache contains the commit."""


def _hub_commit(repo_id: str) -> str:
    """The commit of a hub model in the local cache; loading it first puts it there."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo_id, name) for name in _DATED)
    return next((Path(cached).parent.name for cached in found if isinstance(cached, str)), _UNKNOWN_COMMIT)


def resolve(argument: str, workspace: Workspace, *, remote_code: bool = False) -> ModelSource:
    """The model that an argument names.

    Raises ``UserError`` unless it is a finished model of the workspace (its name or folder), a folder with a
    ``config.json``, a ``.gguf`` file, or a possible hub id.
    """
    path = Path(expand_home(argument))
    is_inside = path.is_dir() and path.resolve().parent == (workspace.root / "models").resolve()
    if artifact := workspace.find("models", path.resolve().name if is_inside else argument):
        return ModelSource(artifact.name, str(artifact.path), None, read_recipe(artifact.path), remote_code)
    if not path.exists() and (workspace.root / "models" / argument).is_dir():
        raise UserError(f"model {argument!r} is unfinished: run the command that began it again")
    return resolve_outside(argument, remote_code)


def resolve_outside(argument: str, remote_code: bool) -> ModelSource:
    """A model outside the workspace: a file, a folder, or a hub id."""
    path = Path(expand_home(argument))
    if path.suffix == ".gguf" and path.is_file():
        first = gguf_files.parts(path)[0]
        return ModelSource(slug(Path(gguf_files.without_part(path.name)).stem), str(path.parent), first.name)
    if path.is_dir():
        return _from_folder(path, remote_code)
    if path.suffix == ".gguf" or path.is_absolute() or argument.startswith((".", "~")) or argument.count("/") > 1:
        raise UserError(
            f"{argument} is not a folder or a .gguf file" if path.exists() else f"no such model: {argument}"
        )
    if not _HUB_ID.fullmatch(argument):
        raise UserError(f"{argument!r} is not a model name, folder, .gguf file or hub id")
    go_offline_if_unreachable()
    source = ModelSource(slug(argument.rpartition("/")[2]), argument, None, hub_recipe(argument), remote_code)
    config = hub_file(argument, PEFT_CONFIG)
    return source if config is None else _on_base(source, config, _FULL_WEIGHTS)


def hub_file(repo_id: str, name: str) -> Path | None:
    """A file of a hub model, fetched or found in the hub's cache; None if there is none, or no hub."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(repo_id, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no such repository, or the hub is out of reach: loading it will say so
        return None
    return Path(path) if path else None


def resolve_recorded(
    argument: str, fingerprint: str, workspace: Workspace, *, remote_code: bool = False
) -> ModelSource:
    """The model that an artifact was made with; ``argument`` and ``fingerprint``: as its manifest has them.

    A model of the workspace, or a folder, is looked for there only, never on the hub. Raises ``UserError`` if it is
    gone, saying what was looked for.
    """
    if not fingerprint.startswith(_HUB):
        is_path = Path(argument).is_absolute()
        if is_path and not Path(argument).exists():
            raise UserError(f"no such folder or file: {argument}")
        if not is_path and workspace.find("models", argument) is None:
            raise UserError(f"no finished model {workspace.root / 'models' / argument}")
        return resolve(argument, workspace, remote_code=remote_code)
    source = resolve(argument, workspace, remote_code=remote_code)
    unknown = f"{_HUB}{argument}@{_UNKNOWN_COMMIT}"
    if source.fingerprint() == unknown != fingerprint:
        _fetch(argument, _DATED)
        if source.fingerprint() == unknown:
            raise UserError(f"{argument} is neither in the hub's cache on this machine nor available on the hub")
    return source


def hub_recipe(repo_id: str) -> Recipe | None:
    """The recipe of a hub model: its small files are fetched (or found in the hub's cache) and read like a folder's."""
    found = _fetch(repo_id, RECIPE_SOURCES)
    return read_recipe(found[-1].parent) if found else None


def _fetch(repo_id: str, names: Sequence[str]) -> list[Path]:
    """Those of the named small files that a hub model has, from the hub's cache or fetched into it."""
    return [path for name in names if (path := hub_file(repo_id, name)) is not None]


def go_offline_if_unreachable(timeout: float = 3.0) -> None:
    """Switch the hub's client to offline mode if the hub does not answer: it would retry for a minute otherwise.

    Behind a proxy this does nothing, as only the client knows how to reach the hub.
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
    if not any((path / name).is_file() for name in ("config.json", MODULES, PEFT_CONFIG)):
        raise UserError(f"{path}: not a model folder (no config.json)")
    source = ModelSource(slug(path.resolve().name), str(path), None, read_recipe(path), remote_code)
    if not (path / PEFT_CONFIG).is_file() or source.has_modules:
        return source
    return _on_base(source, path / PEFT_CONFIG, (file.name for file in path.glob("*")))


def _on_base(source: ModelSource, config: Path, files: Iterable[str]) -> ModelSource:
    """An adapter saved by peft, with the model that it names as its base.

    Args:
        config: the adapter's ``adapter_config.json``.
        files: names that may lie beside it.

    Raises:
        UserError: full weights lie beside the adapter; the base is not named, not found, or an adapter itself.
    """
    full = [name for name in files if _is_full_weights(name) and source.file(name) is not None]
    if full:
        raise UserError(_both(source, min(full)))
    named = _base_named(config)
    place = _beside(named, config.parent)
    if _is_adapter(place):  # checked before it is resolved: adapters may name each other
        raise UserError(f"{source.path}: an adapter on {named!r}, which is an adapter itself: merge that one first")
    try:
        base = resolve_outside(place, source.remote_code)
    except UserError as error:
        raise UserError(f"{source.path}: the base model of this adapter was not found: {error}") from error
    return replace(source, base=base, saved_recipe=source.saved_recipe or base.saved_recipe)


def _both(source: ModelSource, full: str) -> str:
    return (
        f"{source.path}: holds full weights ({full}) and an adapter ({PEFT_CONFIG}), and nothing says whether the "
        "adapter is merged into the weights already: move one of them to a folder of its own"
    )


def refuse_adapter_beside(source: ModelSource) -> None:
    """Raise ``UserError`` for full weights beside an adapter: transformers would attach it silently."""
    if source.base is None and source.file(PEFT_CONFIG) is not None:
        full = [name for name in _FULL_WEIGHTS if source.file(name) is not None]
        raise UserError(_both(source, full[0] if full else "more files"))


def _is_full_weights(name: str) -> bool:
    return name in _FULL_WEIGHTS or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None


def _base_named(config: Path) -> str:
    """The model that an ``adapter_config.json`` names."""
    try:
        fields: Any = json.loads(config.read_text(encoding="utf-8"))
        named = fields["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: does not name the base model of its adapter (base_model_name_or_path)") from error
    if not isinstance(named, str) or not named:
        raise UserError(f"{config}: does not name the base model of its adapter (base_model_name_or_path)")
    if fields.get("revision") not in (None, "", "main") and not Path(expand_home(named)).is_dir():
        raise UserError(
            f"{config}: its adapter is for revision {fields['revision']!r} of {named}: download that revision into a "
            "folder, and name the folder as base_model_name_or_path"
        )
    return named


def _is_adapter(argument: str) -> bool:
    """Whether a folder or hub id is an adapter, saved by peft or llara."""
    place = ModelSource("", expand_home(argument) if Path(expand_home(argument)).is_dir() else argument)
    if not place.is_local and not _HUB_ID.fullmatch(argument):
        return False
    return place.is_adapter or place.file(PEFT_CONFIG) is not None


def _beside(named: str, folder: Path) -> str:
    """Resolve a relative path from the working directory, as peft does, or else from the adapter's folder."""
    if Path(named).is_absolute() or Path(named).exists() or not (folder / named).is_dir():
        return named
    return str(folder / named)
