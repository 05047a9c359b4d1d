"""Models with random weights, a tokenizer of made-up words, and texts in them: the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from texts import train_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from gpu.shapes import Shape
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.tokenizer import PromptIds, TextTokenizer
from llara_cli.training.pretext import Example

PROMPTS = {
    "paper": PromptIds((0,), {"self": (5, 6, 7, 8, 1), "next": (5, 9, 10, 8, 1)}, 1, 1),
    "released": PromptIds((0,), {"self": (5, *range(11, 22)), "next": (6, *range(31, 42))}, 8, 1),
}
"""Prompts in ids, for texts of random ids; those of ``released`` end with eight slots."""
VOCABULARY = 4000
WORDS = ["".join(parts) for parts in product("bdfgklmnprstvz", "aeiou", "bdfgklmnprst", "ae")]
SEEN = 20
"""Texts in which each word is, when the tokenizer is trained: each becomes one token."""


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Made on the device; equal weights each time."""
    torch.manual_seed(0)
    with quiet_transformers(), torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config), dtype=dtype)
    model.config.use_cache = False
    return model


def tokenizer_of_words() -> TextTokenizer:
    """A byte-level BPE whose tokens are ``WORDS``, and their parts."""
    return train_tokenizer([" " + " ".join(WORDS)] * SEEN, VOCABULARY)


def texts_of(lengths: Sequence[int], seed: int) -> list[str]:
    """Texts of so many words each."""
    draw = np.random.default_rng(seed)
    return [" ".join(WORDS[number] for number in draw.integers(0, len(WORDS), length)) for length in lengths]


def passage_lengths(count: int, seed: int = 0) -> list[int]:
    """Words of passages: 180 on average."""
    drawn = np.random.default_rng(seed).lognormal(5.0, 0.6, count)
    return [int(length) for length in np.clip(drawn, 8, 470)]


def examples(kind: str, tokens: int, length: int, vocabulary: int, prompts: PromptIds) -> list[Example]:
    """Texts of random ids, about ``tokens`` with their prompts, each with the next one's tokens as its second target.

    ``kind``: ``full`` texts of ``length`` tokens with both prompts, or ``mixed`` ones that are shorter.
    """
    draw = np.random.default_rng(0)
    overhead = prompts.overhead()
    if kind == "full":
        sizes = np.full(tokens // length + 1, length - overhead)
    else:
        drawn = np.clip(draw.lognormal(5.0, 0.9, tokens), 16, length - overhead).astype(int)
        sizes = drawn[: int(np.searchsorted(np.cumsum(drawn + overhead), tokens)) + 2]
    texts = [draw.integers(50, vocabulary, size) for size in sizes]
    return [Example(text, {"self": text, "next": following}) for text, following in pairwise(texts)]


def save(model: PreTrainedModel, tokenizer: TextTokenizer, folder: Path) -> Path:
    """As other libraries load it."""
    model.save_pretrained(folder)
    tokenizer.hf.padding_side = "left"
    tokenizer.hf.pad_token = tokenizer.hf.eos_token
    tokenizer.save(folder)
    return folder
