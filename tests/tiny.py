"""A tiny random model with a tokenizer of its own, made here: tests that need no other data use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from llara_cli.model.loading import quiet_transformers

TEXTS = [
    "The river rises in the hills above the town and runs south to the sea.",
    "Bees dance to tell each other where the flowers are.",
    "A kettle is descaled with vinegar and water, boiled once and rinsed twice.",
    "The Moon orbits the Earth at a distance of about 384,400 kilometres.",
    "Where is the sea? South of the hills. How far is the Moon? Very far!",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, Any] = {
    "llama": lambda **c: LlamaConfig(**SHAPE, num_key_value_heads=2, **c),
    "qwen": lambda **c: Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True, **c),
    "neox": lambda **c: GPTNeoXConfig(**SHAPE, **c),
    "wide": lambda **c: LlamaConfig(**(SHAPE | {"hidden_size": 64}), num_key_value_heads=2, **c),
}


def make_tokenizer(start: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens with ``<s>`` before each text (unless ``start`` is False), ``</s>`` its end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def make_model(folder: Path, architecture: str = "llama", *, start: bool = True, seed: int = 0) -> Path:
    """Save a tiny random model and its tokenizer into ``folder``."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(start)
    config = ARCHITECTURES[architecture](vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
