"""Text to token ids. Everything is asked of the tokenizer; no id, padding side or start token is assumed.

Special tokens written inside a text are plain text: only the layout of a recipe places control tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from llara_cli.console import UserError
from llara_cli.model.recipe import BRANCHES, Branch, Recipe
from llara_cli.model.source import ModelSource

SPACE_MARKS = ("\u2581", "\u0120")
"""How SentencePiece and byte-level vocabularies write a space at the head of a piece."""


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer as its files say.

    ``tokenizer.json`` is read as it is: transformers 5's model-specific classes rebuild it and lose one piece of a text
    with leading spaces (Llama: ``" hello"`` must be ``▁ ▁hello``).
    """
    options: dict[str, Any] = {"trust_remote_code": source.remote_code}
    try:
        if source.gguf_file:
            tokenizer = AutoTokenizer.from_pretrained(source.location, gguf_file=source.gguf_file, **options)
        elif cached_file(source.location, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source.location)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
    except (OSError, ValueError, ImportError) as error:
        hint = " (a tokenizer.model file needs: pip install sentencepiece protobuf)" if "tiktoken" in str(error) else ""
        raise UserError(f"{source.location}: cannot load its tokenizer: {first_line(error)}{hint}") from error
    return _keep_leading_spaces(tokenizer)


def first_line(error: Exception) -> str:
    """The part of a library's message that fits one line."""
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


@dataclass(frozen=True)
class PromptIds:
    """A recipe in token ids: ``head + text + prompt`` is the sequence of one branch.

    Attributes:
        head: start token (where the tokenizer has one) and prefix.
        prompts: per branch the prompt's ids, slots (or the end token) last.
        slots: how many of the last ids are slots.
        start: how many ids of ``head`` are the tokenizer's own start tokens.
    """

    head: tuple[int, ...]
    prompts: dict[Branch, tuple[int, ...]]
    slots: int
    start: int

    def overhead(self, branches: Sequence[Branch] = BRANCHES) -> int:
        """Tokens that are not the text's, when these branches share one text."""
        return len(self.head) + sum(len(self.prompts[branch]) for branch in branches)

    def text_limit(self, total: int, branches: Sequence[Branch] = BRANCHES) -> int:
        """Tokens left for the text. Raises ``UserError`` where the total is too short for the prompt."""
        if (left := total - self.overhead(branches)) < 1:
            need = self.overhead(branches) + 1
            raise UserError(f"a length of {total} tokens is too short: the prompt alone needs {need - 1}, so >= {need}")
        return left


class TextTokenizer:
    """A Hugging Face tokenizer that gives a text's own ids and nothing else."""

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer

    @classmethod
    def load(cls, source: ModelSource) -> TextTokenizer:
        """The tokenizer of a model."""
        return cls(load_tokenizer(source))

    def with_tokens(self, tokens: Sequence[str]) -> TextTokenizer:
        """A copy that knows these special tokens."""
        extended = TextTokenizer(copy.deepcopy(self.hf))
        extended.add_tokens(tokens)
        return extended

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """Token ids of each text, no special tokens added, cut at ``limit``."""
        if not texts:
            return []
        found = self.hf(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[list[int]] = found["input_ids"]
        return ids if limit is None else [row[:limit] for row in ids]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text, and where each ends in it (characters, exclusive)."""
        found = self.hf(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return found["input_ids"], [end for _, end in found["offset_mapping"]]

    @property
    def start_ids(self) -> list[int]:
        """What the tokenizer puts before a text (Llama: BOS; SmolLM: nothing)."""
        plain = self.encode(["x"])[0]
        full: list[int] = self.hf("x")["input_ids"]
        return full[: next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)]

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no target may contain."""
        return frozenset(self.hf.all_special_ids)

    def _adds_prefix_space(self) -> bool:
        """Whether a text's first piece bears the mark of a space that is not in the text."""
        first: str = self.hf.convert_ids_to_tokens(self.encode(["x"])[0])[0]
        return first.startswith(SPACE_MARKS)

    def _piece(self, text: str) -> list[int]:
        """A prompt's ids, tokenised on its own; with a leading space where the tokenizer adds none itself."""
        if not text:
            return []
        return self.encode([text if self._adds_prefix_space() else " " + text])[0]

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Make these special tokens; how many were new."""
        known = self.hf.get_added_vocab()
        fresh = [token for token in tokens if token not in known]
        if not fresh:
            return 0
        return int(self.hf.add_special_tokens({"additional_special_tokens": fresh}, replace_extra_special_tokens=False))

    def prompt_ids(self, recipe: Recipe) -> PromptIds:
        """The recipe in this tokenizer's ids. Its new tokens must have been added.

        Raises ``UserError`` where an end token is wanted and the tokenizer has none.
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
