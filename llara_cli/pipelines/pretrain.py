"""The stage ``pretrain``: a corpus and a base model in, an adapted model in the workspace out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from llara_cli.core.artifacts import input_record
from llara_cli.core.errors import UserError
from llara_cli.core.workspace import CACHE, Workspace
from llara_cli.data.corpus import corpus_files
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import has_projection, lacks_projection
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import PromptIds
from llara_cli.pipelines.train import Prepared, TrainingRun
from llara_cli.pipelines.train_choices import choose_recipe, derived_name, refuse_length
from llara_cli.training.config import MAX_STEPS, PretrainConfig
from llara_cli.training.examples import ExampleBuilder, ExampleTable
from llara_cli.training.plan import SAMPLE_BATCHES, Load, Sample
from llara_cli.training.pretext import Example, PretextObjective
from llara_cli.training.sampling import Corpus
from llara_cli.training.schedule import Share, schedule_of


@dataclass(frozen=True)
class Pretraining(TrainingRun[Example]):
    """EBAE + EBAR on plain text."""

    corpus: Sequence[str]

    task: ClassVar[str] = "pretrain"

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        source: ModelSource,
        corpus: Sequence[str],
        settings: PretrainConfig,
        name: str | None,
    ) -> Pretraining:
        """Choose every open setting. Raises ``UserError`` for the caller's mistakes."""
        settings = settings.with_preset()
        recipe = choose_recipe(settings, source)
        corpus_files(corpus, workspace.reporter.note)
        with workspace.reporter.status(f"reading the configuration of {source.name}"):
            facts = ModelFacts.of(source)
        settings = settings.fitted(facts.parameters, facts.max_positions)
        refuse_length("max_length", settings.max_length or 0, facts.max_positions)
        drop = recipe.drop_stop_words if settings.drop_stop_words is None else settings.drop_stop_words
        recipe = replace(recipe, targets=settings.targets or recipe.targets, drop_stop_words=drop)
        settings = replace(settings, targets=recipe.targets, drop_stop_words=drop)
        name = name or derived_name(source.name, recipe.name, corpus, settings)
        return cls(workspace, source, settings, recipe, facts, name, corpus)

    @property
    def inputs(self) -> Sequence[dict[str, Any]]:
        """The corpus' files with their digests, hub data sets by name, in the order given."""
        found = []
        for argument in self.corpus:
            if argument.startswith("hf:"):
                found.append({"name": argument, "sha256": None})
            else:
                found += [input_record(path) for path in corpus_files([argument])]
        return found

    @cached_property
    def prompts(self) -> PromptIds:
        """The recipe in token ids. Raises ``UserError`` where ``--max-length`` leaves no room for a text."""
        prompts = self.tokenizer.with_tokens(self.recipe.new_tokens).prompt_ids(self.recipe)
        prompts.text_limit(self.settings.max_length)
        return prompts

    @cached_property
    def texts(self) -> Corpus:
        """The corpus and how it becomes examples."""
        builder = ExampleBuilder(self.tokenizer, self.recipe, self.prompts, self.settings.max_length)
        return Corpus(builder, self.corpus, self.workspace.reporter)

    @property
    def needed(self) -> int | None:
        """Texts that the run's steps take; None where that is told in epochs: all of the corpus is needed."""
        settings = self.settings
        return None if settings.epochs is not None else (settings.max_steps or MAX_STEPS) * settings.batch_size

    @cached_property
    def table(self) -> ExampleTable:
        """The corpus, or as much of it as the run needs, as tokenized examples in the workspace's cache."""
        self.workspace.create()
        key = self.texts.builder.key(self.run_spec.inputs)
        return self.texts.table(self.workspace.root / CACHE, key, self.needed, self.settings.seed)

    @property
    def items(self) -> int:
        """Texts."""
        return len(self.table)

    @property
    def longest(self) -> int:
        """With both prompts."""
        return int(self.settings.max_length)

    @property
    def load(self) -> Load:
        """Texts with both prompts; two rows of logits each."""
        return self._load(self.items, self.table.tokens())

    def _load(self, passages: int, tokens: int) -> Load:
        return Load(tokens, self.prompts.overhead(), 2 * passages, self.budget)

    def sample(self) -> Sample[Example]:
        """Passages of some documents, and what the whole corpus has by them; nothing is written."""
        found = self.texts.survey(self.needed)
        estimate, examples = found.estimate, found.examples
        schedule = schedule_of([Share(0, estimate.passages)], self.settings)
        few = replace(schedule, shares=[Share(0, len(examples))], steps=min(schedule.steps, SAMPLE_BATCHES))
        batches = [[examples[number] for number in numbers] for _, numbers in few.batches()]
        steps = ["steps"] if self.settings.max_steps is None and schedule.steps < MAX_STEPS else []
        estimated = [] if estimate.exact else ["texts", "tokens", *steps]
        return Sample(schedule, self._load(estimate.passages, estimate.tokens), batches, estimated)

    def pick(self, epoch: int, numbers: Sequence[int]) -> Sequence[Example]:
        """The same texts in every epoch."""
        return [self.table[number] for number in numbers]

    def _check_weights(self) -> None:
        if not has_projection(self.source):
            raise self._no_projection()

    def _no_projection(self) -> UserError:
        return UserError(
            f"{self.source.path}: the checkpoint has no vocabulary projection (LM head), through which EBAE and EBAR "
            "predict tokens: a random one would be trained. Take the language model that it was made from"
        )

    def check(self, decoder: Decoder) -> None:
        """Also for one whose logits cannot be computed from its hidden states."""
        super().check(decoder)
        if lacks_projection(decoder.model):
            raise self._no_projection()
        self.workspace.reporter.detail(f"logits: {decoder.logits}")

    def _static_bytes(self, decoder: Decoder) -> float:
        """Also the sum of the projection's gradients, and what of it is handed over with the last forward."""
        head = decoder.projection.weight
        assert isinstance(head, torch.Tensor)
        gathered = 2 * torch.float32.itemsize * head.numel() if head.requires_grad else 0
        return super()._static_bytes(decoder) + gathered

    def objective(self, prepared: Prepared) -> PretextObjective:
        """EBAE and EBAR in one forward where the model honors a mask and positions, else in two."""
        joint = prepared.decoder.runs_jointly()
        if not joint:
            self.workspace.reporter.note(
                f"{self.source.name} takes no custom mask or positions: SELF and NEXT run as two passes"
            )
            if self.settings.layout == "packed":
                self.workspace.reporter.warn("`layout='packed'` needs a model that takes masks: bucketed it is")
        batching = prepared.decoder.batching(self.settings.layout if joint else "bucketed", self.budget)
        self.workspace.reporter.detail(f"layout: {batching}")
        return PretextObjective(prepared.decoder, self.recipe, self.prompts, batching, joint)
