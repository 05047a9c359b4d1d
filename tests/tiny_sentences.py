"""Tiny random models of the library sentence-transformers, made of its own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tiny import SHAPE, make_tokenizer
from tokenizers import processors
from transformers import AutoModel, BertConfig, LlamaConfig, Phi3Config, RobertaConfig

from llara_cli.model.loading import quiet_transformers

KINDS = ("bert", "roberta", "llama")
QUERY_PROMPT = "Instruct: find the passage\nQuery: "
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 5.0, 7.0, 9.0], "original_max_position_embeddings": 16,
}  # fmt: skip
_CONFIGS: dict[str, Any] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "llama": LlamaConfig,
    "phi3": lambda **c: Phi3Config(**c, rope_parameters=_LONGROPE, original_max_position_embeddings=16),
}


def make_sentence_model(folder: Path, kind: str = "bert", *, seed: int = 0, layers: int = 2) -> Path:
    """Save a model: ``bert`` and ``roberta`` pool the mean, ``llama`` the last token behind a query prompt.

    ``roberta`` has a dense layer behind its pooling, of another width; ``phi3`` computes another way above 16 tokens.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    if kind != "llama":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    shape = SHAPE | {"num_hidden_layers": layers}
    config = _CONFIGS[kind](vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)
    parts = folder.with_name(folder.name + "-parts")
    with quiet_transformers():
        AutoModel.from_config(config).save_pretrained(parts)
        tokenizer.save_pretrained(parts)
        body = Transformer(str(parts), **({"max_seq_length": 128} if kind == "bert" else {}))
        pooling = Pooling(body.get_embedding_dimension(), "lasttoken" if kind == "llama" else "mean")
        modules = {"llama": [Normalize()], "roberta": [Dense(SHAPE["hidden_size"], 24)], "bert": [], "phi3": []}[kind]
        prompts = {"query": QUERY_PROMPT, "document": ""} if kind == "llama" else None
        SentenceTransformer(modules=[body, pooling, *modules], prompts=prompts, device="cpu").save(str(folder))
    return folder


def make_static_model(folder: Path) -> Path:
    """Save a model without a Transformer: the mean of its tokens' embeddings."""
    torch.manual_seed(0)
    modules = [StaticEmbedding(make_tokenizer(), embedding_dim=16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def make_router_model(folder: Path) -> Path:
    """Save a model that encodes queries and passages with different modules, passages with one layer more."""
    parts = [make_sentence_model(folder.with_name(f"{folder.name}-bert{n}"), layers=n) for n in (2, 3)]
    with quiet_transformers():
        query, passage = (Transformer(str(part)) for part in parts)
        width = SHAPE["hidden_size"]
        routes = Router.for_query_document([query, Pooling(width, "cls")], [passage, Pooling(width, "mean")])
        SentenceTransformer(modules=[routes], device="cpu").save(str(folder))
    return folder
