"""``finetune`` in one round or several: fine-tune, mine harder negatives with the model, and fine-tune again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llara_cli.core.errors import UserError
from llara_cli.core.launcher import launched_processes
from llara_cli.core.names import NAME_BYTES, check_name, is_name
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.evaluation.dev_set import DevSet
from llara_cli.model.source import ModelSource, resolve
from llara_cli.pipelines.finetune import TrainingSet, finetuning_round
from llara_cli.pipelines.index import index_corpus
from llara_cli.pipelines.mine import Mining
from llara_cli.pipelines.train import TrainingRun
from llara_cli.retrieval.config import EncodeConfig, MineConfig, SearchConfig
from llara_cli.retrieval.hard_negatives import IndexCandidates
from llara_cli.retrieval.searcher import Searcher
from llara_cli.training.config import FinetuneConfig
from llara_cli.training.groups import Group
from llara_cli.training.plan import Plan

MINED = 15
"""Fewest negatives per query mined for the next round, which draws ``negatives`` of them each epoch."""


def finetuning(
    workspace: Workspace, source: ModelSource, train: Sequence[str], config: FinetuneConfig, name: str | None = None
) -> TrainingRun[Group] | Rounds:
    """The fine-tuning run, or rounds, of the settings, after all checks that need no weights.

    ``train``: files or BEIR folders, each with a weight after a colon if it is not 1. Raises ``UserError`` for the
    caller's mistakes.
    """
    sets = [TrainingSet.parse(each) for each in train]
    if config.rounds > 1:
        _check_corpus(config)
    job = Rounds(workspace, source, sets, config, name or "", open_dev_set(workspace, config.dev))
    if config.rounds > 1 and name is None:  # the name without a suffix belongs to a run of one round
        job = replace(job, name=f"{job.round(sets, None).name}-rounds{config.rounds}")
    single = job.round(sets, job.name or None)
    check_names(single.name, config.rounds, len(sets))
    return job if config.rounds > 1 else single


def open_dev_set(workspace: Workspace, folder: Path | None) -> DevSet | None:
    """The dev set in a BEIR folder, with a warning where it is a test split or has gaps."""
    if folder is None:
        return None
    dev_set = DevSet.of(folder)
    if dev_set.is_test:
        workspace.reporter.warn(
            f"{folder} has no split dev: the weights are chosen on its split test, so do not report results on that"
        )
    dev_set.warn_of_gaps(workspace.reporter.warn)
    return dev_set


def _check_corpus(config: FinetuneConfig) -> None:
    """Raise ``UserError`` for a bad corpus before the first round."""
    if launched_processes() > 1:
        raise UserError("`rounds` runs in one process: launch finetune and mine one after the other instead")
    corpus = config.corpus
    assert corpus is not None
    for _ in read_documents(BeirFolder(corpus).corpus if corpus.is_dir() else corpus):
        pass


@dataclass(frozen=True)
class Rounds:
    """Fine-tuning in several rounds. Each starts from the same model, with negatives that are hard for the last one.

    Each step is an artifact: models ``NAME-round1`` ... ``NAME``, embeddings and index of each but the last, and the
    mined rows.
    """

    workspace: Workspace
    source: ModelSource
    sets: Sequence[TrainingSet]
    config: FinetuneConfig
    name: str
    dev: DevSet | None = None

    def round(self, sets: Sequence[TrainingSet], name: str | None) -> TrainingRun[Group]:
        """One round on ``sets``, with a model called ``name``."""
        return finetuning_round(self.workspace, self.source, sets, self.config, name, self.dev)

    def plan(self) -> Plan:
        """The plan of one round."""
        return self.round(self.sets, self.name).plan()

    def run(self, *, restart: bool) -> dict[str, Any]:
        """Run all rounds, resuming an earlier run; return the result of the last one."""
        sets, count = self.sets, self.config.rounds
        for number in range(1, count + 1):
            self.workspace.reporter.note(f"round {number} of {count}")
            run = self.round(sets, _model_name(self.name, number, count))
            # models before the last are steps on the way, and never taken for the newest
            result = run.run(restart=restart, made_for="user" if number == count else "finetune")
            if number < count:
                sets = self._mined(run, restart=restart)
        return result

    def _mined(self, run: TrainingRun[Group], *, restart: bool) -> list[TrainingSet]:
        """The training sets with negatives that are hard for the model of ``run``."""
        config, corpus = self.config, self.config.corpus
        assert corpus is not None
        source = resolve(run.name, self.workspace, remote_code=self.source.remote_code)
        encode = EncodeConfig(max_length=config.passage_length, dtype=config.dtype)
        index = index_corpus(self.workspace, source, corpus, encode, "finetune")
        searcher = Searcher(
            self.workspace, index, SearchConfig(query_length=config.query_length, trust_remote_code=source.remote_code)
        )
        candidates = IndexCandidates(searcher)
        per_query = max(MINED, config.negatives)
        depth, seed = max(MineConfig.depth, per_query), config.seed
        mine_config = MineConfig(depth=depth, per_query=per_query, seed=seed, query_length=config.query_length)
        mined = []
        for number, each in enumerate(self.sets, 1):
            name = _mined_name(run.name, number, len(self.sets))
            mining = Mining(self.workspace, each.path, candidates, mine_config, name)
            mining.run(restart=restart)
            mined.append(replace(each, path=mining.rows_file))
        return mined


def check_names(name: str, rounds: int, sets: int) -> None:
    """Raise ``UserError`` if no artifact may have ``name``, or a name that the rounds derive from it."""
    name = check_name(name)
    models = [_model_name(name, number, rounds) for number in range(1, rounds)]
    mined = [_mined_name(model, number, sets) for model in models for number in range(1, sets + 1)]
    if bad := next((each for each in (*models, *mined) if not is_name(each)), None):
        raise UserError(
            f"name {name!r} is too long for `rounds`: {bad!r} is derived from it, and a name has at most"
            f" {NAME_BYTES} bytes; give a shorter `name`"
        )


def _model_name(name: str, number: int, rounds: int) -> str:
    """Name of a round's model; ``name``: that of the last round."""
    return name if number == rounds else f"{name}-round{number}"


def _mined_name(model: str, number: int, sets: int) -> str:
    """Name of the rows mined with a round's model for training set ``number``."""
    return f"{model}-mined" + (f"-{number}" if sets > 1 else "")
