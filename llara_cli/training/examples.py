"""Tokenized examples of a corpus: a memory-mapped file, cached by content, tokenizer and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from llara_cli.core.errors import UserError
from llara_cli.core.reporter import Bar
from llara_cli.core.workspace import lock_place
from llara_cli.data.arrow_table import BLOCK, Table, write_table
from llara_cli.data.passages import split_document
from llara_cli.data.pretraining_corpus import RawDocument, ReadyRow, read_corpus
from llara_cli.data.stopwords import drop_stop_words
from llara_cli.data.text_files import kind
from llara_cli.model.prefetch import prefetch
from llara_cli.model.prompts import BRANCHES
from llara_cli.model.recipe import Recipe
from llara_cli.model.sequences import TokenIds
from llara_cli.model.tokenizer import PromptIds, TextTokenizer
from llara_cli.training.pretext import Example

_IDS = pa.list_(pa.uint32())
_BLOCK_TEXTS, _BLOCK_CHARACTERS = 256, 1 << 19
"""Documents tokenized at once: enough to use every core, small compared to a model."""
_SCHEMA = pa.schema([("text", _IDS), ("self", _IDS), ("next", _IDS)])

NOTHING_TO_LEARN = "no text to learn from (every text or target is empty)"

Item = RawDocument | ReadyRow
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ExampleTable:
    """Examples in a memory-mapped Arrow file, by number; their ids are uint32 views of the file."""

    def __init__(self, path: Path) -> None:
        self._table = Table(path)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Example:
        row = self._table.arrays(number)
        return Example(row["text"], {branch: row[branch] for branch in BRANCHES})

    def tokens(self) -> int:
        """Text tokens of all examples."""
        return self._table.total_length("text")


@dataclass(frozen=True)
class ExampleBuilder:
    """Turns documents and ready rows into examples of at most ``max_length`` tokens, prompts included."""

    tokenizer: TextTokenizer
    recipe: Recipe
    prompts: PromptIds
    max_length: int

    def key(self, inputs: Sequence[Mapping[str, Any]]) -> str:
        """Cache key of the table: content and format of the inputs, tokenizer and settings.

        ``inputs``: records with ``name`` and ``sha256`` (None: only the name identifies it).
        """
        tokenizer = hashlib.sha256(self.tokenizer.hf.backend_tokenizer.to_str().encode()).hexdigest()
        content = [[kind(Path(record["name"])), record["sha256"] or record["name"]] for record in inputs]
        identity = [content, tokenizer, asdict(self.recipe), self.prompts.head, self.max_length, "v3"]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    def build(
        self,
        corpus: Sequence[str],
        path: Path,
        bar: Bar,
        read: Callable[[Sequence[str]], Iterator[Item]] = read_corpus,
        most: int | None = None,
    ) -> ExampleTable:
        """Read, split and tokenize the corpus into ``path``, unless an earlier run did so.

        Args:
            read: yields the documents or ready rows to take from the corpus.
            most: stop after this many examples.

        Raises ``UserError`` for a corpus without text to learn from (nothing is left on disk), and while `llara clean`
        runs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        # another run on the same corpus waits, then finds the file
        with lock_place(path.parent.parent, path.stem, wait=-1):
            if not path.is_file():
                aside = path.with_suffix(".part")
                try:
                    examples = islice(self.of(read(corpus)), most)
                    if not write_table(aside, _SCHEMA, map(_row, bar.over(examples))):
                        raise UserError(f"{', '.join(corpus)}: {NOTHING_TO_LEARN}")
                    aside.replace(path)
                finally:
                    aside.unlink(missing_ok=True)
        return ExampleTable(path)

    def of(self, items: Iterator[Item]) -> Iterator[Example]:
        """Examples of documents or of ready rows, depending on the first item; ``read_corpus`` never mixes them."""
        first = next(items)
        rest: Iterator[Any] = chain([first], items)
        return self.examples(rest) if isinstance(first, ReadyRow) else self.document_examples(rest)

    def examples(self, rows: Iterator[ReadyRow]) -> Iterator[Example]:
        """Examples of rows with targets; each text is tokenized on its own."""
        limit = self.text_limit
        while block := list(islice(rows, BLOCK)):
            texts = self.tokenizer.encode([row.input for row in block], limit)
            own = self._targets(row.output_summarize or "" for row in block)
            successors = self._targets(row.output_predict or "" for row in block)
            yield from self._kept(texts, own, successors)

    def document_examples(self, documents: Iterator[RawDocument]) -> Iterator[Example]:
        """Examples of documents' passages: each is its own EBAE target and the EBAR target of the one before it."""
        for tokenized in prefetch(self.tokenizer.encode_documents, _blocks(document.text for document in documents)):
            parts = [split_document(document.text, document.ends, self._passage_limit) for document in tokenized]
            ids = self.tokenizer.encode_parts(tokenized, parts)
            passages = chain.from_iterable(parts)
            own = iter(
                self._targets(passages) if self.recipe.drop_stop_words else self._chosen(chain.from_iterable(ids))
            )
            for rows in ids:
                targets = list(islice(own, len(rows)))
                yield from self._kept([row[: self.text_limit] for row in rows], targets, [*targets[1:], ()])

    @property
    def text_limit(self) -> int:
        """Most tokens of an example's text."""
        return self.prompts.text_limit(self.max_length)

    @property
    def _passage_limit(self) -> int:
        # leave room: tokenized on its own, a passage may have a token more than inside its document
        return self.text_limit - (2 if self.text_limit > 16 else 0)

    def _kept(
        self, texts: Iterable[TokenIds], own: Iterable[TokenIds], successors: Iterable[TokenIds]
    ) -> Iterator[Example]:
        """The examples that have a target."""
        for text, itself, successor in zip(texts, own, successors, strict=True):
            if len(itself) or len(successor) or (len(text) and self.recipe.language_model_loss):
                yield Example(text, {"self": itself, "next": successor})

    def _targets(self, texts: Iterable[str]) -> list[TokenIds]:
        """Target ids of texts."""
        drop = self.recipe.drop_stop_words
        chosen = [drop_stop_words(text) if drop else text for text in texts]
        return self._chosen(self.tokenizer.encode(chosen, self._target_limit))

    @property
    def _target_limit(self) -> int:
        """The ``released`` recipe cuts targets at the total length, including BOS; ``paper`` at the text's."""
        return self.text_limit if self.recipe.target_limit == "text" else self.max_length - self.prompts.start

    def _chosen(self, rows: Iterable[TokenIds]) -> list[TokenIds]:
        """Target ids."""
        limit = self._target_limit
        if self.recipe.targets == "all":
            return [row[:limit] for row in rows]
        special = self.tokenizer.special_ids
        return [sorted({*map(int, row[:limit])} - special) for row in rows]


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in blocks to tokenize at once."""
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == _BLOCK_TEXTS or sum(map(len, block)) >= _BLOCK_CHARACTERS:
            yield block
            block = []
    if block:
        yield block


def _row(example: Example) -> dict[str, TokenIds]:
    return {"text": example.text, "self": example.targets["self"], "next": example.targets["next"]}
