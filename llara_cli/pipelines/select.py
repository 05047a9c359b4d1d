"""The model or artifact that a job uses when none is named; the choice is always reported."""

from __future__ import annotations

from llara_cli.core.artifacts import Artifact, Kind
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Role
from llara_cli.core.workspace import Workspace
from llara_cli.model.source import MODULES, TORCH, ModelSource, resolve, resolve_recorded
from llara_cli.retrieval.vector_files import VectorFile
from llara_cli.training.config import DEFAULT_MODEL


def named_model(workspace: Workspace, given: str, remote_code: bool = False) -> ModelSource:
    """The model that an argument names; for an adapter, its base is reported."""
    source = resolve(given, workspace, remote_code=remote_code)
    if source.base is not None:
        workspace.reporter.note(f"{source.name}: an adapter on the base {source.base.path}")
    return source


def chosen_encoder(workspace: Workspace, given: str | None, source: ModelSource) -> str:
    """The encoder given, else the model's own; reported if it is not torch."""
    if given is not None:
        return given
    encoder = source.usual_encoder
    if encoder != TORCH:
        workspace.reporter.note(f"encoder: {encoder} ({source.name} has a {MODULES})")
    return encoder


def model_to_pretrain(
    workspace: Workspace, given: str | None, remote_code: bool = False, default: str = DEFAULT_MODEL
) -> ModelSource:
    """The model named, else the base model ``default``."""
    if given is None:
        given = default
        workspace.reporter.note(f"model: {given} ({'the default' if given == DEFAULT_MODEL else 'from llara.toml'})")
    return named_model(workspace, given, remote_code)


def model_to_finetune(
    workspace: Workspace, given: str | None, remote_code: bool = False, default: str = DEFAULT_MODEL
) -> ModelSource:
    """The model named, else the newest pretrained one, else the base model ``default``."""
    models = users_own(workspace, "models") if given is None else []
    if adapted := [model.name for model in models if model.manifest["settings"].get("task") == "pretrain"]:
        given = adapted[-1]
        workspace.reporter.note(f"model: {given} (the newest pretrained model)")
    return model_to_pretrain(workspace, given, remote_code, default)


def model_to_use(workspace: Workspace, given: str | None, remote_code: bool = False) -> ModelSource:
    """The model named, else the newest of the workspace. Raises ``UserError`` if there is none."""
    if given is None:
        given = newest(workspace, "models", "pretrain or finetune one, or name one with `model`").name
        workspace.reporter.note(f"model: {given} (the newest)")
    return named_model(workspace, given, remote_code)


def model_of_vectors(
    workspace: Workspace, file: VectorFile, given: str | None, remote_code: bool = False
) -> ModelSource:
    """The model named, else the one recorded in a file of vectors: never just the newest.

    Raises ``UserError`` if there is neither, or if the recorded model is gone.
    """
    if given is not None:
        return named_model(workspace, given, remote_code)
    if (origin := file.origin) is None:
        raise UserError(f"{file.path} does not say which model made its vectors: name the model with `model`")
    try:
        source = resolve_recorded(origin.source, origin.fingerprint, workspace, remote_code=remote_code)
    except UserError as error:
        raise UserError(
            f"{file.origin_file} says that the vectors were made by {origin.model!r}, which was not found: {error};"
            " name its location with `model`"
        ) from error
    workspace.reporter.note(f"model: {source.name} (as {file.origin_file} says)")
    return source


def recorded_choices(
    workspace: Workspace, file: VectorFile, role: Role | None, encoder: str | None
) -> tuple[Role | None, str | None]:
    """Role and encoder: those given, else those recorded in the file, which are reported if not the defaults."""
    if (origin := file.origin) is None:
        return role, encoder
    if role is None and origin.role != "passage":
        workspace.reporter.note(f"as: {origin.role} (as {file.origin_file} says)")
    if encoder is None and origin.encoder != TORCH:
        workspace.reporter.note(f"encoder: {origin.encoder} (as {file.origin_file} says)")
    recorded: Role = "query" if origin.role == "query" else "passage"
    return recorded if role is None else role, origin.encoder if encoder is None else encoder


def newest(workspace: Workspace, kind: Kind, otherwise: str) -> Artifact:
    """The newest artifact of a kind that the user made. Raises ``UserError`` with advice if there is none."""
    found = users_own(workspace, kind)
    if not found:
        raise _nothing(workspace, kind, kind, otherwise)
    return found[-1]


def users_own(workspace: Workspace, kind: Kind) -> list[Artifact]:
    """Sound artifacts that the user made, oldest first, without those that jobs made on the way."""
    return [artifact for artifact in workspace.sound(kind) if artifact.is_users_own]


def _nothing(workspace: Workspace, kind: Kind, what: str, otherwise: str) -> UserError:
    """The error if the user made none, with the names of those that jobs made on the way."""
    others = [artifact.name for artifact in workspace.sound(kind) if not artifact.is_users_own]
    named = f". Other commands made these on the way; to use one, name it: {', '.join(others)}" if others else ""
    return UserError(f"no {what} in {workspace.root} yet: {otherwise}{named}")


def newest_passages(workspace: Workspace) -> Artifact:
    """The newest embeddings of passages."""
    found = [a for a in users_own(workspace, "embeddings") if a.manifest["settings"].get("as") == "passage"]
    if not found:
        raise _nothing(workspace, "embeddings", "embeddings of passages", "run llara encode first")
    workspace.reporter.note(f"embeddings: {found[-1].name} (the newest of passages)")
    return found[-1]
