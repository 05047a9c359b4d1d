"""Token counts of a sentence-transformers model: lengths, cut texts, empty texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llara_cli.model.tokenizer import beginning


@dataclass(frozen=True)
class Counts:
    """``lengths``: total tokens of each truncated text with its prompt; ``tokens``: sum of the text tokens."""

    lengths: list[int]
    tokens: int
    cut: int
    empty: int


def shortened(tokenizer: Any, prompt: str, texts: Sequence[str], limit: int | None) -> list[str]:
    """Texts without what is far beyond a limit of tokens, so that a book is not tokenized for its first page.

    Vectors and counts are those of the whole texts.
    """
    if limit is None or not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.truncation_side != "right":
        return list(texts)
    return [beginning(tokenizer, prompt + text, limit + 1)[len(prompt) :] for text in texts]


def count(tokenizer: Any, prompt: str, texts: Sequence[str], limit: int | None) -> Counts:
    """Count tokens of texts after a prompt, with at most ``limit`` tokens in total; the text is truncated."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.is_fast:
        found = _count_fast(tokenizer, prompt, texts)
    else:
        found = [_count_one(tokenizer, prompt, text) for text in texts]
    over = [max(0, total - (limit or total)) for total, _ in found]
    return Counts(
        lengths=[total - cut for (total, _), cut in zip(found, over, strict=True)],
        tokens=sum(max(0, text - cut) for (_, text), cut in zip(found, over, strict=True)),
        cut=sum(cut > 0 for cut in over),
        empty=sum(text == 0 for _, text in found),
    )


def overhead(tokenizer: Any, prompt: str) -> int:
    """Tokens of a sequence without the text: prompt and special tokens."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return 0
    return len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])


def _count_fast(tokenizer: Any, prompt: str, texts: Sequence[str]) -> list[tuple[int, int]]:
    """Per text: tokens of the sequence, and those that end inside the text."""
    if not texts:
        return []
    asked = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "return_attention_mask": False}
    rows = tokenizer([prompt + text for text in texts], truncation=False, verbose=False, **asked)
    start = len(prompt)
    return [
        (len(special), sum(end > start and not control for (_, end), control in zip(ends, special, strict=True)))
        for ends, special in zip(rows["offset_mapping"], rows["special_tokens_mask"], strict=True)
    ]


def _count_one(tokenizer: Any, prompt: str, text: str) -> tuple[int, int]:
    """The same for one text, for tokenizers without offsets, or not of transformers."""
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        total = len(tokenizer(prompt + text, truncation=False, verbose=False)["input_ids"])
        return total, max(0, total - overhead(tokenizer, prompt))
    if hasattr(tokenizer, "tokenize"):
        return len(tokenizer.tokenize(prompt + text)), len(tokenizer.tokenize(text))
    whole, alone = (tokenizer.encode(part, add_special_tokens=False) for part in (prompt + text, text))
    return len(whole.ids), len(alone.ids)
