"""Which models the commands take: any causal decoder, whatever its modules are called, and no other model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import Llara
from safetensors.torch import load_file
from tiny import SHAPE, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from llara_cli.model.loading import quiet_transformers

OPT_350M = {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
LLAMA_4 = {
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
    "interleave_moe_layer_step": 2, "attention_chunk_size": 64, "layer_types": ["chunked_attention", "full_attention"],
}  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "opt-350m": ("opt", OPT_350M, 16),
    "llama4": ("llama4_text", LLAMA_4, 32),
    "modernbert": ("modernbert-decoder", {"cls_token_id": 1, "sep_token_id": 2}, 32),
}
"""Model type, settings beside the shape, and width of a vector."""


def save(folder: Path, kind: str, **settings: Any) -> Path:
    """A tiny random model of any kind, with a tokenizer."""
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    with quiet_transformers():
        config = AutoConfig.for_model(kind, **(SHAPE | ids | {"vocab_size": len(tokenizer)} | settings))
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_with_modules_of_other_names_are_trained_and_encoded_with(
    llara: Llara, corpus: Path, train: Path, beir: Path, tmp_path: Path, name: str
) -> None:
    kind, settings, width = DECODERS[name]
    model = save(tmp_path / name, kind, **settings)
    steps = ["--max-steps", 1, "--batch-size", 4, "--json"]
    adapted = llara("pretrain", corpus, "--model", model, "--name", "adapted", "--max-length", 96, *steps)
    assert adapted.code == 0, adapted.err
    tuned = llara("finetune", train, "--model", "adapted", "--name", "tuned", "--backend", "full", *steps)
    assert tuned.code == 0, tuned.err
    encoded = llara("encode", beir / "corpus.jsonl", "--model", "tuned", "--max-length", 96, "--json")
    assert encoded.code == 0, encoded.err
    assert encoded.json["dim"] == width
    vectors = np.load(Path(encoded.json["path"]) / "vectors-00000.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_full_training_trains_a_layer_in_front_of_the_projection(llara: Llara, corpus: Path, tmp_path: Path) -> None:
    kind, settings, _ = DECODERS["modernbert"]
    model = save(tmp_path / "base", kind, **settings)
    steps = ["--max-steps", 1, "--batch-size", 4, "--max-length", 96, "--learning-rate", 1e-3, "--warmup-ratio", 0]
    assert llara("pretrain", corpus, "--model", model, "--name", "adapted", *steps).code == 0
    before, after = (
        load_file(folder / "model.safetensors")["lm_head.dense.weight"]
        for folder in (model, tmp_path / "ws" / "models" / "adapted")
    )
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "encode"])
def test_a_model_that_sees_what_comes_later_is_refused(
    llara: Llara, corpus: Path, train: Path, beir: Path, tmp_path: Path, verb: str
) -> None:
    given = {"pretrain": corpus, "finetune": train, "encode": beir / "corpus.jsonl"}[verb]
    model = save(tmp_path / "bert", "bert", is_decoder=False)
    outcome = llara(verb, given, "--model", model)
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {model}: bert (is_decoder: false) is not a causal decoder: ")
    assert "--encoder sentence-transformers" in outcome.error


@pytest.mark.parametrize("plan", [[], ["--dry-run"]], ids=["run", "plan"])
def test_a_model_without_logits_of_hidden_states_is_encoded_with_but_not_pretrained(
    llara: Llara, corpus: Path, beir: Path, tmp_path: Path, plan: list[str]
) -> None:
    model = save(tmp_path / "roberta", "roberta", is_decoder=True, max_position_embeddings=256)
    refused = llara("pretrain", corpus, "--model", model, "--max-length", 96, *plan)
    assert refused.code == 2
    assert "roberta: its logits cannot be computed from its hidden states" in refused.error
    assert llara("encode", beir / "corpus.jsonl", "--model", model, "--max-length", 96).code == 0
