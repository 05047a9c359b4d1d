"""Text to token ids. No id, padding side or start token is assumed: all are read from the tokenizer.

Special tokens written inside a text are plain text: only the layout of a recipe places control tokens.
"""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from llara_cli.core.errors import UserError
from llara_cli.data.text_files import first_of
from llara_cli.model.gguf_tokenizer import load_gguf_tokenizer
from llara_cli.model.prompts import BRANCHES, Branch
from llara_cli.model.recipe import Recipe
from llara_cli.model.source import ModelSource

SPACE_MARKS = ("\u2581", "\u0120")
"""How SentencePiece and byte-level vocabularies write a space at the head of a piece."""
AT_ONCE = 256
"""Texts that are tokenized together, which takes some 300 bytes a token."""
TOKEN_CHARACTERS, MARGIN_CHARACTERS = 8, 512
"""Characters read per token of a text that will be cut, and extra characters that are always read."""
LONGEST_WORD = 16
"""Multiple of the characters read at first; beyond it a text without white space is cut within a word."""
_NORMALIZERS = frozenset(("NFC", "Prepend", "Replace"))
_SPLITTERS = frozenset(("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"))
_SPACE = re.compile(r"\s")
_WORD_END = re.compile(r"\S(?= )")


def load_tokenizer(source: ModelSource) -> Any:
    """Load the tokenizer exactly as its files describe it.

    ``tokenizer.json`` is read as it is: transformers 5's model-specific classes rebuild it and lose one piece of a text
    with leading spaces (Llama: ``" hello"`` must be ``▁ ▁hello``).
    """
    options: dict[str, Any] = {"trust_remote_code": source.remote_code}
    try:
        if source.gguf_file:
            tokenizer = load_gguf_tokenizer(source.location, source.gguf_file, **options)
        elif cached_file(source.tokenizer_location, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source.tokenizer_location)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_location, **options)
    except (OSError, ValueError, ImportError) as error:
        hint = " (a tokenizer.model file needs: pip install sentencepiece protobuf)" if "tiktoken" in str(error) else ""
        raise UserError(f"{source.location}: cannot load its tokenizer: {first_line(error)}{hint}") from error
    return _keep_leading_spaces(tokenizer)


def _add_bos_token(source: ModelSource) -> bool | None:
    """``add_bos_token`` of ``tokenizer_config.json``, which transformers forgets when it reads ``tokenizer.json``."""
    if source.gguf_file:
        return None
    path = cached_file(
        source.tokenizer_location, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8")).get("add_bos_token") if path else None
    except (ValueError, AttributeError):  # loading the tokenizer has refused damaged files already
        return None
    return value if isinstance(value, bool) else None


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The single steps of a normalizer or pre-tokenizer, as ``tokenizer.json`` has it."""
    if part is None:
        return []
    return [step for each in part[inner] for step in _steps(each, inner)] if part["type"] == "Sequence" else [part]


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _keep_leading_spaces(tokenizer: Any) -> Any:
    """Undo ``prepend_scheme="first"`` on a tokenizer converted from SentencePiece: it drops a leading space's piece."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    splitter = getattr(backend, "pre_tokenizer", None)
    if isinstance(splitter, Metaspace) and splitter.prepend_scheme == "first":
        assert backend is not None
        mark = splitter.replacement
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    return tokenizer


def beginning(tokenizer: Any, text: str, tokens: int, **options: Any) -> str:
    """A prefix of a text whose first ``tokens`` ids equal those of the whole text; a short text is returned whole.

    It is cut between words, as a cut inside one may change all of its ids (Unigram); and the tokens wanted must lie in
    the first half of what is left, as pairs may be merged across words (Llama 2). Where no white space parts the words
    of a very long text it is cut all the same. A tokenizer without offsets reads all. ``options``: of the tokenizer's
    call.
    """
    if not getattr(tokenizer, "is_fast", False):
        return text
    first = size = 2 * (TOKEN_CHARACTERS * tokens + MARGIN_CHARACTERS)
    while 2 * size < len(text):
        space = _SPACE.search(text, 3 * size // 4, size)
        if space or size >= LONGEST_WORD * first:
            part = text[: space.start() if space else size]
            found = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options)
            ends = [end for _, end in found["offset_mapping"][:tokens]]
            if len(ends) == tokens and max(ends) <= len(part) // 2:
                return part
        size *= 2
    return text


@dataclass(frozen=True)
class PromptIds:
    """A recipe in token ids: ``head + text + prompt`` is the sequence of one branch.

    Attributes:
        head: start token (where the tokenizer has one) and prefix.
        prompts: per branch the prompt's ids, slots (or the end token) last.
        slots: number of slots, the last ids of each prompt.
        start: number of ids of ``head`` that are the tokenizer's own start tokens.
    """

    head: tuple[int, ...]
    prompts: dict[Branch, tuple[int, ...]]
    slots: int
    start: int

    def overhead(self, branches: Sequence[Branch] = BRANCHES) -> int:
        """Tokens of head and prompts, when these branches share one text."""
        return len(self.head) + sum(len(self.prompts[branch]) for branch in branches)

    def text_limit(self, total: int, branches: Sequence[Branch] = BRANCHES) -> int:
        """Tokens left for the text. Raises ``UserError`` if the total is too short for the prompt."""
        if (left := total - self.overhead(branches)) < 1:
            need = self.overhead(branches) + 1
            raise UserError(f"a length of {total} tokens is too short: the prompt alone needs {need - 1}, so >= {need}")
        return left


@dataclass(frozen=True)
class Tokenized:
    """A text and its tokens: ids (tokens,), and where each starts and ends in the text (exclusive, non-decreasing)."""

    text: str
    ids: NDArray[np.uint32]
    starts: Sequence[int]
    ends: Sequence[int]

    def between(self, start: int, stop: int) -> NDArray[np.uint32] | None:
        """Ids of the tokens in ``text[start:stop]``; None if a token lies across its start or its end."""
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, stop)
        # behind a character of several byte tokens, the next token may begin with the last of its bytes
        whole = [*self.ends[max(first - 1, 0) : first], *self.ends[last - 1 : last]] == [start, stop]
        return self.ids[first:last] if whole and all(s >= stop for s in self.starts[last : last + 1]) else None


class TextTokenizer:
    """A Hugging Face tokenizer that adds no special tokens to a text.

    ``add_bos_token``: as in its ``tokenizer_config.json``; None: not set there.
    """

    def __init__(self, tokenizer: Any, add_bos_token: bool | None = None) -> None:
        self.hf = tokenizer
        self.add_bos_token = add_bos_token

    @classmethod
    def load(cls, source: ModelSource) -> TextTokenizer:
        """The tokenizer of a model."""
        return cls(load_tokenizer(source), _add_bos_token(source))

    def with_tokens(self, tokens: Sequence[str]) -> TextTokenizer:
        """A copy with these special tokens added."""
        extended = TextTokenizer(copy.deepcopy(self.hf))
        extended.add_tokens(tokens)
        return extended

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """Token ids of each text, no special tokens added, cut at ``limit``."""
        return [row[:limit] for row in self.each(texts, limit)]

    def each(self, texts: Sequence[str], limit: int | None = None) -> Iterator[list[int]]:
        """``encode`` one text after the other, which keeps the tokenizer's other output for few texts only.

        A text longer than ``limit`` gets at least one more id than that, but not all: a book is never read whole.
        """
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        for at in range(0, len(texts), AT_ONCE):
            some = list(texts[at : at + AT_ONCE])
            if limit is not None:
                some = [beginning(self.hf, text, limit + 1, split_special_tokens=True) for text in some]
            yield from self.hf(some, add_special_tokens=False, split_special_tokens=True, **options)["input_ids"]

    def encode_documents(self, texts: Sequence[str]) -> list[Tokenized]:
        """Each text's ids with their positions in it."""
        found = self.hf(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [
            Tokenized(
                text, np.array(ids, np.uint32), [s for s, _ in places], list(accumulate((e for _, e in places), max))
            )
            for text, ids, places in zip(texts, found["input_ids"], found["offset_mapping"], strict=True)
        ]

    def encode_parts(
        self, documents: Sequence[Tokenized], parts: Sequence[Sequence[str]]
    ) -> list[list[NDArray[np.uint32]]]:
        """Ids of the parts of each document, equal to ``encode``'s, but taken from the document's ids where possible.

        ``parts``: consecutive pieces of each text, none empty or with white space around it.
        """
        halves = [list(self.halves(document, pieces)) for document, pieces in zip(documents, parts, strict=True)]
        heads = iter(self.encode([head for row in halves for head, _ in row]))
        return [[np.concatenate([np.array(next(heads), np.uint32), ids]) for _, ids in row] for row in halves]

    def halves(self, document: Tokenized, parts: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint32]]]:
        """Split each part into a head, to be tokenized on its own, and a rest, with its ids in the document.

        The head is the first word, whose tokens depend on what stands before it, or all of the part.
        """
        stop = 0
        for part in parts:
            start = document.text.index(part, stop)
            stop = start + len(part)
            apart = self._parting is not None and self._parting.match(document.text, stop)
            word = _WORD_END.search(document.text, start, stop) if apart else None
            ids = document.between(word.end(), stop) if word else None
            yield (part, np.zeros(0, np.uint32)) if word is None or ids is None else (part[: word.end() - start], ids)

    @cached_property
    def _parting(self) -> re.Pattern[str] | None:
        """What must follow a part for its last ids to equal its document's; None: no part's ids are sure to.

        They are sure for byte pairs if no piece of the vocabulary has a space after a word: merges before a place that
        no piece crosses do not depend on what follows it (unless whole words skip the merges).
        """
        state = json.loads(self.hf.backend_tokenizer.to_str())
        model, normalizers = state["model"], _steps(state["normalizer"], "normalizers")
        sure = (
            model["type"] == "BPE"
            and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
            and all(step["type"] in _NORMALIZERS for step in normalizers)
            and all(step["pattern"] == {"String": " "} for step in normalizers if step["type"] == "Replace")
            and all(step["type"] in _SPLITTERS for step in _steps(state["pre_tokenizer"], "pretokenizers"))
            and not any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"] if not token["special"])
            and not any(_WORD_END.search(self._written(piece)) for piece in self.hf.get_vocab())
        )
        return re.compile(r" |\Z" if model.get("ignore_merges") else r"\s|\Z") if sure else None

    def _written(self, piece: str) -> str:
        """The text of a piece of the vocabulary."""
        decoder = self.hf.backend_tokenizer.decoder
        text: str = piece if decoder is None else decoder.decode([piece])
        return text.replace(SPACE_MARKS[0], " ")

    @property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer puts before a text (Llama: BOS; SmolLM: none)."""
        plain = self.encode(["x"])[0]
        full: list[int] = self.hf("x")["input_ids"]
        return full[: next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)]

    def contradiction(self) -> str | None:
        """A warning where its two files disagree about a start token; ``tokenizer.json`` prevails."""
        start = self.start_ids
        if self.add_bos_token is True and not start:
            return (
                "tokenizer_config.json says add_bos_token: true, but tokenizer.json adds no start token:"
                " texts are read without one"
            )
        if self.add_bos_token is False and self.hf.bos_token_id in start:
            return (
                "tokenizer_config.json says add_bos_token: false, but tokenizer.json adds a start token:"
                f" texts are read with {self.hf.bos_token!r} before them"
            )
        return None

    def check_ids(self, recipe: Recipe, rows: int, where: str) -> None:
        """Raise ``UserError`` if a text or a prompt may have ids beyond an embedding of ``rows`` rows.

        Special tokens count only in prompts: inside a text they are plain text. Tokens of the recipe that the tokenizer
        lacks do not count either: they, and all before them, get rows when they are added. ``where`` names the model.
        """
        fresh = set(recipe.new_tokens) - self.hf.get_added_vocab().keys()
        extended = self.with_tokens(recipe.new_tokens) if fresh else self
        rows = max([rows, *(extended.hf.convert_tokens_to_ids(token) + 1 for token in fresh)])
        prompts = extended.prompt_ids(recipe)
        self.check_texts(rows, where, {number for part in (prompts.head, *prompts.prompts.values()) for number in part})

    def check_texts(self, rows: int, where: str, also: Set[int] = frozenset()) -> None:
        """``check_ids`` for texts alone, and for the ids ``also``."""
        special = {number for number, token in self.hf.added_tokens_decoder.items() if token.special}
        beyond = {number for number in self.hf.get_vocab().values() if number >= rows} - special
        if found := sorted(beyond | {number for number in also if number >= rows}):
            tokens = [f"{self.hf.convert_ids_to_tokens(number)!r} ({number})" for number in found]
            raise UserError(
                f"{where}: its tokenizer has tokens that the model does not know: {first_of(tokens, 3)}, but the"
                f" embedding has rows for ids below {rows}: use the tokenizer that belongs to the model, or add rows to"
                " it"
            )

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, which no target may contain."""
        return frozenset(self.hf.all_special_ids)

    def _adds_prefix_space(self) -> bool:
        """Whether a text's first piece has a space that is not in the text."""
        first: str = self.hf.convert_ids_to_tokens(self.encode(["x"])[0])[0]
        return first.startswith(SPACE_MARKS)

    def _piece(self, text: str) -> list[int]:
        """Ids of a part of a prompt, tokenized on its own, with a leading space where the tokenizer adds none."""
        if not text:
            return []
        return self.encode([text if self._adds_prefix_space() else " " + text])[0]

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Add these as special tokens; return how many were new."""
        known = self.hf.get_added_vocab()
        fresh = [token for token in tokens if token not in known]
        if not fresh:
            return 0
        return int(self.hf.add_special_tokens({"additional_special_tokens": fresh}, replace_extra_special_tokens=False))

    def prompt_ids(self, recipe: Recipe) -> PromptIds:
        """The recipe in this tokenizer's ids; its new tokens must have been added.

        Raises ``UserError`` if an end token is wanted and the tokenizer has none.
        """
        start = self.start_ids
        prompts = {
            branch: tuple(self._piece(prompt.text) + self._slots(prompt.slots))
            for branch, prompt in recipe.prompts.items()
        }
        slots = max(1, len(recipe.prompts["self"].slots))
        return PromptIds((*start, *self._piece(recipe.prefix)), prompts, slots, len(start))

    def _slots(self, slots: Sequence[str]) -> list[int]:
        if slots:
            ids: list[int] = self.hf.convert_tokens_to_ids(list(slots))
            return ids
        if self.hf.eos_token_id is None:
            raise UserError("the tokenizer has no end token (eos_token), which the recipe's embedding is read from")
        return [self.hf.eos_token_id]

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.hf.save_pretrained(folder)
