"""How much of a corpus a run tokenizes: all of it, or a random sample of its documents.

A survey reads and checks the whole corpus and tokenizes a few hundred of its documents. From these it estimates how
many passages the corpus has, and so how many documents a run needs; plans use the same survey.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from llara_cli.core.artifacts import write_atomically
from llara_cli.core.errors import UserError
from llara_cli.core.reporter import Reporter
from llara_cli.core.workspace import lock_place
from llara_cli.data.hub import PREFIX as HUB
from llara_cli.data.pretraining_corpus import RawDocument, pieces, read_corpus
from llara_cli.training.examples import NOTHING_TO_LEARN, ExampleBuilder, ExampleTable, Item
from llara_cli.training.pretext import Example

SURPLUS = 2
"""Passages tokenized per passage used, so that those of a batch come from many documents."""
LEAST_UNITS = 256
"""Fewest units to draw, so that the passages of a batch do not come from a few documents."""
TOKENIZED_WHOLE = 1 << 22
"""Corpora of at most this many characters are tokenized whole, which takes seconds."""
SAMPLE = 256
"""Units that a survey tokenizes."""
UNIT_CHARACTERS = 64
"""Characters of a unit per token of a passage. Longer documents are drawn in pieces of this size, some 16 passages:
else a run would see only a few books of a corpus of books."""
_LONGEST_TOKEN = 8
"""Most characters per token, on average, in any language: limits what is read of a stream for an estimate."""


@dataclass(frozen=True)
class Estimate:
    """How large a corpus is.

    Attributes:
        units: number of documents (long ones in pieces) or ready rows, which are drawn.
        characters: of all texts.
        passages: number of examples.
        tokens: text tokens of the examples.
        exact: whether the whole corpus was tokenized, so that nothing is estimated.
    """

    units: int
    characters: int
    passages: int
    tokens: int
    exact: bool


@dataclass(frozen=True)
class Survey:
    """An estimate, and the examples that it was made from, by unit."""

    estimate: Estimate
    examples: Sequence[Example]


def units(items: Iterable[Item], longest: int) -> Iterator[Item]:
    """The units to draw from: ready rows, documents, and pieces of documents longer than ``longest`` characters."""
    for item in items:
        if isinstance(item, RawDocument) and len(item.text) > longest:
            yield from (replace(item, text=piece) for piece in pieces(item.text, longest))
        else:
            yield item


def longest_unit(builder: ExampleBuilder) -> int:
    """Characters of the longest unit."""
    return UNIT_CHARACTERS * builder.text_limit


def drawn(items: Iterable[Item], count: int, total: int, seed: int) -> Iterator[Item]:
    """``count`` of the ``total`` items, in order; every such subset is equally likely (Knuth, Algorithm S)."""
    draw = random.Random(seed)
    left = count
    for number, item in enumerate(items):
        if draw.random() * (total - number) < left:
            left -= 1
            yield item


def survey(builder: ExampleBuilder, items: Iterable[Item], most: int | None = None) -> Survey:
    """Read every item (of a stream, the first ``most`` characters) and tokenize a few, drawn at random."""
    draw, sample = random.Random(0), list[Item]()
    documents = count = characters = 0
    for item in items:
        documents += 1
        for unit in units([item], longest_unit(builder)):
            count += 1
            characters += _length(unit)
            if count <= SAMPLE:
                sample.append(unit)
            elif (place := draw.randrange(count)) < SAMPLE:
                sample[place] = unit
        if most is not None and characters >= most:
            break
    examples = [list(builder.of(iter([unit]))) for unit in sample]
    sizes = [_length(unit) for unit in sample]
    passages = _total([len(each) for each in examples], sizes, count, characters)
    tokens = _total([sum(len(example.text) for example in each) for each in examples], sizes, count, characters)
    exact = documents == count <= SAMPLE and (most is None or characters < most)
    return Survey(Estimate(count, characters, passages, tokens, exact), list(chain.from_iterable(examples)))


def _length(item: Item) -> int:
    return len(item.text if isinstance(item, RawDocument) else item.input)


def _total(values: Sequence[int], sizes: Sequence[int], count: int, size: int) -> int:
    """The sum of a value over all ``count`` units, with ``size`` characters in all, from its values in a sample.

    A least-squares estimate of what a unit and a character add to the value. Exact if the sample is all units, as the
    residuals then cancel out.
    """
    known = np.column_stack([np.ones(len(sizes)), sizes])
    weights = np.linalg.lstsq(known, np.array(values, np.float64))[0]
    return max(sum(values), round(float(weights @ [count, size])))


@dataclass(frozen=True)
class Corpus:
    """A corpus to learn from: ``arguments`` are files, folders and ``hf:`` data sets."""

    builder: ExampleBuilder
    arguments: Sequence[str]
    reporter: Reporter

    @property
    def is_stream(self) -> bool:
        """Whether it is a data set of the hub, whose rows are downloaded as they are read."""
        return len(self.arguments) == 1 and self.arguments[0].startswith(HUB)

    def table(self, folder: Path, key: str, needed: int | None, seed: int) -> ExampleTable:
        """The examples for a run that takes ``needed`` passages (None: all), kept in ``folder`` under ``key``.

        They depend on the corpus, the builder, ``needed`` and ``seed`` only, so a resumed run has the same.
        Raises ``UserError`` for bad data anywhere in the corpus.
        """
        whole = folder / f"examples-{key}.arrow"
        mixed = not self.is_stream and any(argument.startswith(HUB) for argument in self.arguments)
        if needed is None or mixed:
            return self._built(whole, read_corpus)
        surplus = SURPLUS * needed
        if self.is_stream:
            path = folder / f"examples-{key}-first-{surplus}-{seed}.arrow"
            return self._built(path, lambda corpus: read_corpus(corpus, seed), most=surplus)
        estimate = self._estimate(folder, key)
        small = estimate.characters <= TOKENIZED_WHOLE or estimate.units <= LEAST_UNITS
        if small or estimate.passages <= SURPLUS * surplus:
            return self._built(whole, read_corpus, estimate.passages)
        count = max(LEAST_UNITS, math.ceil(surplus * estimate.units / estimate.passages))
        while True:
            table = self._drawn(folder, key, count, estimate, seed)
            if len(table) >= needed or count == estimate.units:
                return table
            count = min(2 * count, estimate.units)  # far fewer passages than estimated

    def survey(self, needed: int | None) -> Survey:
        """The survey for a plan. Of a stream, no more is read than a run that takes ``needed`` passages may read.

        Raises ``UserError`` for bad data, and if the tokenized part has nothing to learn from.
        """
        most = None
        if self.is_stream and needed is not None:
            most = SURPLUS * needed * self.builder.text_limit * _LONGEST_TOKEN
        surveyed = self._surveyed(most)
        if not surveyed.examples:
            raise UserError(f"{', '.join(self.arguments)}: {NOTHING_TO_LEARN}")
        return surveyed

    def _surveyed(self, most: int | None) -> Survey:
        with self.reporter.bar("reading", None, unit="documents") as bar:
            return survey(self.builder, bar.over(read_corpus(self.arguments)), most)

    def _estimate(self, folder: Path, key: str) -> Estimate:
        """The estimate of an earlier survey, else of a new one."""
        path = folder / f"survey-{key}.json"
        folder.mkdir(parents=True, exist_ok=True)
        with lock_place(folder.parent, path.stem, wait=-1):
            if not path.is_file():
                write_atomically(path, json.dumps(asdict(self._surveyed(None).estimate)))
            return Estimate(**json.loads(path.read_text(encoding="utf-8")))

    def _drawn(self, folder: Path, key: str, count: int, estimate: Estimate, seed: int) -> ExampleTable:
        """Examples of ``count`` units, drawn at random."""
        path = folder / f"examples-{key}-{count}-of-{estimate.units}-{seed}.arrow"
        expected = estimate.passages * count // estimate.units

        def read(corpus: Sequence[str]) -> Iterator[Item]:
            return drawn(units(read_corpus(corpus), longest_unit(self.builder)), count, estimate.units, seed)

        return self._built(path, read, expected)

    def _built(
        self,
        path: Path,
        read: Callable[[Sequence[str]], Iterator[Item]],
        expected: int | None = None,
        most: int | None = None,
    ) -> ExampleTable:
        """The examples in ``path``; ``expected``: about how many there will be."""
        with self.reporter.bar("tokenizing", expected or most, unit="passages") as bar:
            table = self.builder.build(self.arguments, path, bar, read, most)
            bar.finish()
        return table
