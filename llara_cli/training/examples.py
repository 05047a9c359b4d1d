"""Corpora as tokenised examples on disk: built once, keyed by content, tokenizer and settings, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from llara_cli.console import Bar, UserError
from llara_cli.data.corpus import RawDocument, ReadyRow, read_corpus
from llara_cli.data.passages import pair_up, split_document
from llara_cli.data.stopwords import drop_stop_words
from llara_cli.data.table import BLOCK, Table, write_table
from llara_cli.model.recipe import BRANCHES, Recipe
from llara_cli.model.tokens import PromptIds, TextTokenizer
from llara_cli.training.pretext import Example

_IDS = pa.list_(pa.uint32())
_SCHEMA = pa.schema([("text", _IDS), ("self", _IDS), ("next", _IDS)])


class ExampleTable:
    """Examples in a memory-mapped Arrow file, by number."""

    def __init__(self, path: Path) -> None:
        self._table = Table(path)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Example:
        row = self._table[number]
        return Example(row["text"], {branch: row[branch] for branch in BRANCHES})

    def lengths(self) -> Iterator[int]:
        """Text tokens of each example, in order."""
        return (len(ids) for ids in self._table.column("text"))


@dataclass(frozen=True)
class ExampleBuilder:
    """Turns documents and ready rows into examples of at most ``max_length`` tokens, prompts included."""

    tokenizer: TextTokenizer
    recipe: Recipe
    prompts: PromptIds
    max_length: int

    def key(self, inputs: Sequence[object]) -> str:
        """What the cached table is filed under: the inputs' names and fingerprints, the tokenizer and the settings."""
        tokenizer = hashlib.sha256(self.tokenizer.hf.backend_tokenizer.to_str().encode()).hexdigest()
        told = [list(inputs), tokenizer, asdict(self.recipe), self.prompts.head, self.max_length, "v2"]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def build(self, corpus: Sequence[str], path: Path, bar: Bar) -> ExampleTable:
        """Read, split and tokenise the corpus into ``path``; at once if an earlier run did so.

        Raises ``UserError`` for a corpus without a text to learn from; nothing is left on disk then.
        """
        locks = path.parent.parent / ".locks"
        for folder in (path.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{path.stem}.lock"):  # another run on the same corpus waits, and then finds it done
            if not path.is_file():
                aside = path.with_suffix(".part")
                try:
                    self._write(corpus, aside, bar)
                    aside.replace(path)
                finally:
                    aside.unlink(missing_ok=True)
        return ExampleTable(path)

    def _write(self, corpus: Sequence[str], path: Path, bar: Bar) -> None:
        if not write_table(path, _SCHEMA, self._counted(self.examples(self._rows(read_corpus(corpus))), bar)):
            raise UserError(f"{', '.join(corpus)}: no text to learn from (every text or target is empty)")

    @staticmethod
    def _counted(examples: Iterable[Example], bar: Bar) -> Iterator[dict[str, Sequence[int]]]:
        for example in examples:
            bar.advance()
            yield {"text": example.text, "self": example.targets["self"], "next": example.targets["next"]}

    def _rows(self, items: Iterable[RawDocument | ReadyRow]) -> Iterator[ReadyRow]:
        # tokenised again on its own, a passage may take a token more than inside its document: leave room for it
        limit = self.prompts.text_limit(self.max_length)
        limit -= 2 if limit > 16 else 0
        for item in items:
            if isinstance(item, ReadyRow):
                yield item
                continue
            _, ends = self.tokenizer.encode_with_ends(item.text)
            for passage, successor in pair_up(split_document(item.text, ends, limit)):
                yield ReadyRow(passage, passage, successor, item.where)

    def examples(self, rows: Iterator[ReadyRow]) -> Iterator[Example]:
        limit = self.prompts.text_limit(self.max_length)
        while block := list(islice(rows, BLOCK)):
            texts = self.tokenizer.encode([row.input for row in block], limit)
            targets = [self._targets([row.output_summarize for row in block], limit)]
            targets.append(self._targets([row.output_predict for row in block], limit))
            for text, own, successor in zip(texts, *targets, strict=True):
                if own or successor or (text and self.recipe.language_model_loss):
                    yield Example(text, {"self": own, "next": successor})

    def _targets(self, texts: Sequence[str | None], text_limit: int) -> list[list[int]]:
        """Target ids: the authors cut at the total length with the start token counted, the paper at the text's."""
        plain = [text or "" for text in texts]
        if self.recipe.drop_stop_words:
            plain = [drop_stop_words(text) for text in plain]
        limit = text_limit if self.recipe.target_limit == "text" else self.max_length - self.prompts.start
        ids = self.tokenizer.encode(plain, limit)
        if self.recipe.targets == "all":
            return ids
        special = self.tokenizer.special_ids
        return [sorted(set(row) - special) for row in ids]
