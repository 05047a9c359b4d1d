"""Tiny random causal language models of many architectures of transformers, and what holds for each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llara_cli.model.loading import quiet_transformers

VOCABULARY = 101
_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    **_IDS,
}
_GROUPED = _SHAPE | {"num_key_value_heads": 1}
_HEADS = _GROUPED | {"head_dim": 8}
_MOE = _HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LOCAL = _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **_IDS}
_BERT = _SHAPE | {"is_decoder": True}
_MLA = _SHAPE | {
    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24,
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1], "long_factor": [2.0, 7.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama-dynamic": ("llama", _GROUPED | {"max_position_embeddings": 64, "rope_parameters": {"rope_type":
        "dynamic", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-bias": ("llama", _GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED | {"sliding_window": 7}),
    "ministral": ("ministral", _HEADS | {"sliding_window": 7}),
    "mixtral": ("mixtral", _LOCAL),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2_moe": ("qwen2_moe", _MOE | {"shared_expert_intermediate_size": 8}),
    "qwen3": ("qwen3", _HEADS),
    "qwen3_moe": ("qwen3_moe", _MOE),
    "qwen3_next": ("qwen3_next", _MOE | {"linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 8}),
    "gemma": ("gemma", _HEADS),
    "gemma2": ("gemma2", _HEADS | {"sliding_window": 7, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", _HEADS | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma3-capped": ("gemma3_text", _HEADS | {"final_logit_softcapping": 3.0}),
    "vaultgemma": ("vaultgemma", _HEADS | {"sliding_window": 7}),
    "recurrent_gemma": ("recurrent_gemma", _HEADS | {"lru_width": 16, "attention_window_size": 8, "block_types":
        ["recurrent", "attention"]}),
    "phi": ("phi", _SHAPE),
    "phi3": ("phi3", _GROUPED),
    "phi3-longrope": ("phi3", _GROUPED | {"num_attention_heads": 4, "num_key_value_heads": 2,
        "original_max_position_embeddings": 16, "rope_parameters": _LONGROPE}),
    "phimoe": ("phimoe", _LOCAL),
    "granite": ("granite", _GROUPED | {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "granitemoe": ("granitemoe", _LOCAL | {"logits_scaling": 6.0}),
    "granitemoeshared": ("granitemoeshared", _LOCAL | {"logits_scaling": 6.0, "shared_intermediate_size": 8}),
    "granitemoehybrid": ("granitemoehybrid", _LOCAL | {"logits_scaling": 6.0, "shared_intermediate_size": 8,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "cohere": ("cohere", _GROUPED | {"logit_scale": 0.0625}),
    "cohere2": ("cohere2", _HEADS | {"logit_scale": 0.25, "sliding_window": 7}),
    "olmo": ("olmo", _GROUPED),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", _GROUPED | {"sliding_window": 7}),
    "olmoe": ("olmoe", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "flex_olmo": ("flex_olmo", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("stablelm", _GROUPED),
    "starcoder2": ("starcoder2", _GROUPED | {"sliding_window": 7}),
    "gpt2": ("gpt2", _GPT),
    "gpt_neo": ("gpt_neo", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
        "attention_types": [[["global", "local"], 1]], "window_size": 6, "max_position_embeddings": 64, **_IDS}),
    "gpt_neox": ("gpt_neox", _SHAPE),
    "gpt_neox_japanese": ("gpt_neox_japanese", _SHAPE),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "openai-gpt": ("openai-gpt", _GPT),
    "ctrl": ("ctrl", _GPT | {"dff": 24}),
    "codegen": ("codegen", _GPT | {"rotary_dim": 4, "n_head": 4}),
    "falcon": ("falcon", _SHAPE),
    "falcon-alibi": ("falcon", _SHAPE | {"alibi": True}),
    "falcon_h1": ("falcon_h1", _HEADS | {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4,
        "mamba_d_head": 8, "mamba_d_state": 8}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, **_IDS}),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}),
    "opt": ("opt", _SHAPE | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt-350m": ("opt", _SHAPE | {"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "xglm": ("xglm", {"vocab_size": VOCABULARY, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24,
        "max_position_embeddings": 64, **_IDS}),
    "biogpt": ("biogpt", _SHAPE),
    "persimmon": ("persimmon", _SHAPE),
    "smollm3": ("smollm3", _GROUPED | {"no_rope_layers": [1, 0]}),
    "glm": ("glm", _HEADS),
    "glm4": ("glm4", _HEADS),
    "glm4_moe": ("glm4_moe", _HEADS | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "helium": ("helium", _HEADS),
    "nemotron": ("nemotron", _HEADS),
    "exaone4": ("exaone4", _GROUPED | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    "ernie4_5": ("ernie4_5", _HEADS),
    "ernie4_5_moe": ("ernie4_5_moe", _GROUPED | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8,
        "moe_layer_start_index": 1}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _HEADS),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", _HEADS | {"num_experts": 4, "moe_topk": 2}),
    "hyperclovax": ("hyperclovax", _GROUPED | {"logits_scaling": 0.125}),
    "seed_oss": ("seed_oss", _HEADS),
    "apertus": ("apertus", _GROUPED),
    "arcee": ("arcee", _GROUPED),
    "bitnet": ("bitnet", _GROUPED),
    "dots1": ("dots1", _HEADS | {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "diffllama": ("diffllama", _HEADS | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "jetmoe": ("jetmoe", {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers":
        2, "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "max_position_embeddings": 64, **_IDS}),
    "mamba": ("mamba", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, **_IDS}),
    "mamba2": ("mamba2", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
        "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8, **_IDS}),
    "falcon_mamba": ("falcon_mamba", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2,
        "state_size": 4, **_IDS}),
    "rwkv": ("rwkv", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size":
        16, "context_length": 64}),
    "zamba": ("zamba", _GROUPED | {"attention_hidden_size": 32, "attention_head_dim": 16, "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False}),
    "zamba2": ("zamba2", _GROUPED | {"num_attention_heads": 2, "num_key_value_heads": 2, "mamba_d_state": 4,
        "n_mamba_heads": 4, "mamba_headdim": 8, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1,
        "use_mamba_kernels": False, "attention_hidden_size": 32, "attention_head_dim": 16}),
    "jamba": ("jamba", _GROUPED | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False,
        "mamba_d_state": 4}),
    "bamba": ("bamba", _GROUPED | {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 8}),
    "lfm2": ("lfm2", _GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "nanochat": ("nanochat", _GROUPED | {"final_logit_softcapping": 3.0}),
    "deepseek_v2": ("deepseek_v2", _MLA | {"topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", _MLA),
    "minicpm3": ("minicpm3", _MLA | {"dim_model_base": 4}),
    "minimax": ("minimax", _LOCAL | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8,
        "head_dim": 8}),
    "gpt_oss": ("gpt_oss", _LOCAL | {"head_dim": 8, "sliding_window": 7}),
    "doge": ("doge", _GROUPED | {"keep_window_size": 64}),
    "cwm": ("cwm", _HEADS | {"sliding_window": 7}),
    "modernbert-decoder": ("modernbert-decoder", _SHAPE | {"local_attention": 7, "global_attn_every_n_layers": 2,
        "cls_token_id": 1, "sep_token_id": 2}),
    "llama4": ("llama4_text", _HEADS | {"intermediate_size_mlp": 24, "num_local_experts": 2, "num_experts_per_tok":
        1, "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "layer_types": ["chunked_attention",
        "full_attention"]}),
    "bert": ("bert", _BERT),
    "roberta": ("roberta", _BERT),
    "electra": ("electra", _BERT | {"embedding_size": 8}),
    "rembert": ("rembert", _BERT | {"input_embedding_size": 8, "output_embedding_size": 12}),
    "bart": ("bart", _ENCODER_DECODER),
    "mbart": ("mbart", _ENCODER_DECODER),
    "ministral3": ("ministral3", _HEADS),
    "exaone_moe": ("exaone_moe", _MOE | {"first_k_dense_replace": 1}),
    "minimax_m2": ("minimax_m2", _LOCAL | {"head_dim": 8}),
    "cohere2_moe": ("cohere2_moe", _MOE),
    "glm4_moe_lite": ("glm4_moe_lite", _MLA),
    "olmo_hybrid": ("olmo_hybrid", _HEADS),
    "megatron-bert": ("megatron-bert", _BERT),
    "nemotron_h": ("nemotron_h", _HEADS | {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4,
        "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1}),
}  # fmt: skip
"""Name, model type and settings of causal decoders."""


NO_PRETRAINING = {
    "roberta": "not made of hidden states by one module",
    "rembert": "not made of hidden states by one module",
}
"""Those whose logits are made of hidden states in ways that pre-training does not know, and what is said of it."""

_AFTER = "not a causal decoder: hidden states depend on later tokens"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert-encoder": ("bert", _SHAPE, f"bert (is_decoder: false) is {_AFTER}"),
    "roberta-encoder": ("roberta", _SHAPE, f"roberta (is_decoder: false) is {_AFTER}"),
    "electra-encoder": ("electra", _SHAPE | {"embedding_size": 8}, f"electra (is_decoder: false) is {_AFTER}"),
    "xlnet": ("xlnet", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, _AFTER),
    "xlm": ("xlm", {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2}, _AFTER),
}
"""Name, model type and settings of models that no text is encoded with, and what is said of them."""

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 18):  # there they are no causal decoders
    REFUSED |= {name: (*CAUSAL.pop(name), _AFTER) for name in ("doge", "rembert", "megatron-bert")}


@cache
def make(name: str) -> PreTrainedModel:
    """A random model of a few thousand weights, in fp32, in eval mode, shared among tests.

    Its matrices are larger than transformers makes them: or attention would hardly look at positions or neighbors.
    """
    kind, settings = CAUSAL[name] if name in CAUSAL else REFUSED[name][:2]
    torch.manual_seed(0)
    with quiet_transformers():
        config = AutoConfig.for_model(kind, **settings)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    matrices = {part.weight for part in model.modules() if isinstance(part, nn.Linear | nn.Embedding | Conv1D)}
    with torch.no_grad():
        for weight in matrices:
            weight.mul_(0.2 / weight.std())
    return model
