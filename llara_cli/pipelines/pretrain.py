"""``pretrain``: a corpus and a base model in, an adapted model of the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from llara_cli.core.distributed import Decide, alone
from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_record
from llara_cli.core.reporter import Reporter
from llara_cli.core.workspace import CACHE, Workspace
from llara_cli.data.pretraining_corpus import corpus_files
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import has_projection, lacks_projection
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import PromptIds
from llara_cli.pipelines.train import TrainingRun
from llara_cli.training.base_model import BaseModel, choose_recipe, default_model_name, read_info
from llara_cli.training.config import MAX_STEPS, PretrainConfig
from llara_cli.training.early_stopping import EarlyStopping, TrainingPlace
from llara_cli.training.examples import ExampleBuilder, ExampleTable
from llara_cli.training.plan import SAMPLE_BATCHES, Sample, Workload
from llara_cli.training.pretext import Example, PretextObjective
from llara_cli.training.sampling import Corpus
from llara_cli.training.schedule import Share, schedule_of
from llara_cli.training.trainable_model import TrainableModel


def pretraining(
    workspace: Workspace, source: ModelSource, corpus: Sequence[str], config: PretrainConfig, name: str | None = None
) -> TrainingRun[Example]:
    """A pre-training run with all open settings chosen. Raises ``UserError`` for the caller's mistakes.

    ``corpus``: files, folders, or ``hf:NAME/CONFIG``.
    """
    reporter, config = workspace.reporter, config.with_preset()
    recipe = choose_recipe(config, source)
    corpus_files(corpus, reporter.note)
    info = read_info(source, reporter)
    config = config.fitted(info.parameters, info.max_positions)
    drop = recipe.drop_stop_words if config.drop_stop_words is None else config.drop_stop_words
    recipe = replace(recipe, targets=config.targets or recipe.targets, drop_stop_words=drop)
    config = replace(config, targets=recipe.targets, drop_stop_words=drop)
    base = BaseModel(source, recipe, info, reporter)
    base.refuse_length("max_length", config.max_length or 0)
    name = name or default_model_name(source.name, recipe.name, corpus, config)
    data = PretextData(workspace, base, corpus, config)
    return TrainingRun(workspace, base, config, config.recorded(), name, data, PretextTask(data, reporter))


@dataclass(frozen=True)
class PretextData:
    """Passages of a corpus, each with the one that follows it, as tokenized examples."""

    workspace: Workspace
    base: BaseModel
    corpus: Sequence[str]
    config: PretrainConfig
    _inputs: list[dict[str, Any]] = field(default_factory=list, init=False)

    def inputs(self, decide: Decide = alone) -> Sequence[dict[str, Any]]:
        """The corpus' files with their digests, and hub data sets by name, in the order given."""
        if not self._inputs:
            self._inputs.extend(decide(self._read_inputs))
        return self._inputs

    def _read_inputs(self) -> list[dict[str, Any]]:
        inputs: list[dict[str, Any]] = []
        for argument in self.corpus:
            if argument.startswith("hf:"):
                inputs.append({"name": argument, "sha256": None})
            else:
                inputs += [input_record(path) for path in corpus_files([argument])]
        return inputs

    @property
    def max_length(self) -> int:
        """Total tokens of a sequence."""
        assert self.config.max_length is not None
        return self.config.max_length

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, both prompts included."""
        return self.max_length

    @cached_property
    def prompts(self) -> PromptIds:
        """The recipe in token ids. Raises ``UserError`` if ``max_length`` leaves no room for a text."""
        recipe = self.base.recipe
        prompts = self.base.tokenizer.with_tokens(recipe.new_tokens).prompt_ids(recipe)
        prompts.text_limit(self.max_length)
        return prompts

    @cached_property
    def texts(self) -> Corpus:
        """The corpus, and how it is turned into examples."""
        builder = ExampleBuilder(self.base.tokenizer, self.base.recipe, self.prompts, self.max_length)
        return Corpus(builder, self.corpus, self.workspace.reporter)

    @property
    def needed(self) -> int | None:
        """Examples that the run's steps need; None for a length in epochs, which needs the whole corpus."""
        config = self.config
        assert config.batch_size is not None
        return None if config.epochs is not None else (config.max_steps or MAX_STEPS) * config.batch_size

    @cached_property
    def table(self) -> ExampleTable:
        """The corpus, or as much of it as the run needs, as tokenized examples in the workspace's cache."""
        self.workspace.create()
        key = self.texts.builder.key(self.inputs())
        return self.texts.table(self.workspace.root / CACHE, key, self.needed, self.config.seed)

    @property
    def shares(self) -> Sequence[Share]:
        """One set."""
        return [Share(0, len(self.table))]

    def workload(self, budget: int) -> Workload:
        """Texts with both prompts, and two rows of logits each."""
        return self._workload(len(self.table), self.table.tokens(), budget)

    def _workload(self, passages: int, tokens: int, budget: int) -> Workload:
        return Workload(tokens, self.prompts.overhead(), 2 * passages, budget)

    def sample(self, budget: int) -> Sample[Example]:
        """Passages of some documents, and estimates for the whole corpus from them; writes nothing."""
        survey = self.texts.survey(self.needed)
        estimate, examples = survey.estimate, survey.examples
        schedule = schedule_of([Share(0, estimate.passages)], self.config)
        few = replace(schedule, shares=[Share(0, len(examples))], steps=min(schedule.steps, SAMPLE_BATCHES))
        batches = [[examples[number] for number in numbers] for _, numbers in few.batches()]
        steps = ["steps"] if self.config.max_steps is None and schedule.steps < MAX_STEPS else []
        estimated = [] if estimate.exact else ["texts", "tokens", *steps]
        workload = self._workload(estimate.passages, estimate.tokens, budget)
        return Sample(schedule, workload, batches, estimated)

    def batch(self, epoch: int, numbers: Sequence[int]) -> Sequence[Example]:
        """The same examples in every epoch."""
        return [self.table[number] for number in numbers]


@dataclass(frozen=True)
class PretextTask:
    """EBAE and EBAR, which predict tokens with the vocabulary projection."""

    data: PretextData
    reporter: Reporter

    name: ClassVar[str] = "pretrain"

    def check_source(self, source: ModelSource) -> None:
        """Raise ``UserError`` for a checkpoint without a vocabulary projection."""
        if not has_projection(source):
            raise _no_projection(source)

    def adopt(self, model: TrainableModel) -> None:
        """Raise ``UserError`` for a model whose logits cannot be computed from its hidden states."""
        if lacks_projection(model.decoder.model):
            raise _no_projection(self.data.base.source)
        self.reporter.detail(f"logits: {model.decoder.logits}")

    def objective(self, model: TrainableModel, budget: int) -> PretextObjective:
        """EBAE and EBAR in one forward if the model takes a mask and positions, else in two."""
        joint, layout = model.decoder.runs_jointly(), self.data.config.layout
        if not joint:
            name = self.data.base.source.name
            self.reporter.note(f"{name} takes no custom mask or positions: SELF and NEXT run as two passes")
            if layout == "packed":
                self.reporter.warn("`layout='packed'` needs a model that takes masks: using bucketed")
        chosen = layout if joint else "bucketed"
        model.decoder.choose_attention(chosen)
        batching = model.decoder.batching(chosen, budget)
        self.reporter.detail(f"layout: {batching}")
        return PretextObjective(model.decoder, self.data.base.recipe, self.data.prompts, batching, joint)

    def extra_bytes(self, decoder: Decoder) -> int:
        """The sum of the projection's gradients, and its copy that the last forward passes to autograd."""
        head = decoder.projection.weight
        assert isinstance(head, torch.Tensor)
        return 2 * torch.float32.itemsize * head.numel() if head.requires_grad else 0

    def early_stopping(self, model: TrainableModel, place: TrainingPlace) -> EarlyStopping | None:
        """Pre-training has no dev set."""
        return None


def _no_projection(source: ModelSource) -> UserError:
    return UserError(
        f"{source.path}: the checkpoint has no vocabulary projection (LM head), with which EBAE and EBAR "
        "predict tokens: a random one would be trained. Use the language model that it was made from"
    )
