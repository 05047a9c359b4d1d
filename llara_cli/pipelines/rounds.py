"""``llara finetune --rounds``: fine-tune, encode, index, mine, and fine-tune again on the harder negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llara_cli.core.config import FinetuneConfig
from llara_cli.core.errors import UserError
from llara_cli.core.launcher import launched_processes
from llara_cli.core.names import NAME_BYTES, check_name, is_name
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.model.source import resolve
from llara_cli.pipelines.encode import EncodeConfig
from llara_cli.pipelines.finetune import Finetuning, TrainingSet
from llara_cli.pipelines.hard_negatives import DenseFinder
from llara_cli.pipelines.index import index_corpus
from llara_cli.pipelines.mine import MineConfig, Mining
from llara_cli.pipelines.search import Searching

MINED = 15
"""Negatives of a query that a round hands to the next, at least; the next draws ``--negatives`` of them each epoch."""


def check_rounds(rounds: int, corpus: Path | None, settings: FinetuneConfig) -> None:
    """Raise ``UserError`` for what cannot be, a bad corpus included: better now than after the first round."""
    if rounds < 1:
        raise UserError(f"--rounds must be positive, not {rounds}")
    if (rounds > 1) != (corpus is not None):
        raise UserError("--rounds 2 or more and --corpus C, which negatives are mined from, go together")
    if rounds > 1 and launched_processes() > 1:
        raise UserError("--rounds runs in one process: launch finetune and mine one after the other instead")
    if corpus is None:
        return
    if settings.distillation:
        raise UserError("--rounds mines negatives that no teacher has scored, and --distillation follows scores")
    if not settings.negatives:
        raise UserError("--rounds mines hard negatives, and --negatives 0 takes none of them")
    for _ in read_documents(BeirFolder(corpus).corpus if corpus.is_dir() else corpus):
        pass


def check_names(name: str, rounds: int, sets: int) -> None:
    """Raise ``UserError`` where ``name``, or one that the rounds derive from it, cannot be an artifact's."""
    name = check_name(name)
    models = [_model_name(name, number, rounds) for number in range(1, rounds)]
    mined = [_mined_name(model, number, sets) for model in models for number in range(1, sets + 1)]
    if bad := next((each for each in (*models, *mined) if not is_name(each)), None):
        raise UserError(
            f"name {name!r} is too long for --rounds: {bad!r} is derived from it, and a name has at most"
            f" {NAME_BYTES} bytes; give a shorter --name"
        )


def run_rounds(
    workspace: Workspace,
    make: Callable[[Sequence[TrainingSet], str], Finetuning],
    name: str,
    train: Sequence[TrainingSet],
    rounds: int,
    corpus: Path,
    *,
    restart: bool,
) -> dict[str, Any]:
    """The result of the last round. Every round starts from the same model, with the last round's negatives.

    ``make``: a run on these sets under this name; ``name``: the last round's. Each step is an artifact: models
    ``NAME-round1`` ... ``NAME``, the embeddings and index of each but the last, and the mined rows.
    """
    sets = train
    for number in range(1, rounds + 1):
        workspace.reporter.note(f"round {number} of {rounds}")
        run = make(sets, _model_name(name, number, rounds))
        # the models before the last are not what the user asked for, and never taken for the newest
        result = run.run(restart=restart, made_for="user" if number == rounds else "finetune")
        if number < rounds:
            sets = _mined(workspace, run, train, corpus, restart=restart)
    return result


def _mined(
    workspace: Workspace, run: Finetuning, train: Sequence[TrainingSet], corpus: Path, *, restart: bool
) -> list[TrainingSet]:
    """The training sets with the negatives that the model of ``run`` finds hard."""
    settings = run.settings
    source = resolve(run.name, workspace, remote_code=run.source.remote_code)
    encode = EncodeConfig(max_length=settings.passage_length, dtype=settings.dtype)
    index = index_corpus(workspace, source, corpus, encode, "finetune")
    searching = Searching(workspace, index, settings.query_length, remote_code=source.remote_code)
    finder = DenseFinder(searching)
    wanted = max(MINED, settings.negatives)
    depth, seed = max(MineConfig.depth, wanted), settings.optimizer.seed
    mine = MineConfig(depth, wanted, seed=seed, query_length=settings.query_length)
    made = []
    for number, each in enumerate(train, 1):
        name = _mined_name(run.name, number, len(train))
        mining = Mining(workspace, each.path, finder, mine, name)
        mining.run(restart=restart)
        made.append(replace(each, path=mining.rows_file))
    return made


def _model_name(name: str, number: int, rounds: int) -> str:
    """Of a round's model; ``name``: the last round's."""
    return name if number == rounds else f"{name}-round{number}"


def _mined_name(model: str, number: int, sets: int) -> str:
    """Of the rows mined with a round's model for training set ``number``."""
    return f"{model}-mined" + (f"-{number}" if sets > 1 else "")
