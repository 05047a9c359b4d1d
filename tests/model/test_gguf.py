"""A ``.gguf`` file, written here from a tiny model, loads as the same model and can be saved like any other."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import SHAPE

from llara_cli.console import UserError
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.source import ModelSource, resolve
from llara_cli.model.tokens import TextTokenizer
from llara_cli.workspace import Workspace

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""transformers' names -> GGUF's."""


def gguf_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` -> ``blk.0.ffn_up.weight``."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        return f"blk.{number}.{NAMES[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which llama.cpp keeps query and key rows."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


@pytest.fixture
def gguf_file(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny Llama as GGUF, in float32."""
    source = ModelSource("tiny", str(tiny_model))
    tokenizer = TextTokenizer.load(source).hf
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    model = tokenizer.backend_tokenizer.to_str()
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(model)["model"]["merges"]]
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in load_causal_lm(source, torch.float32).state_dict().items():
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = permuted(array, SHAPE["num_attention_heads"] if "q_proj" in name else 2)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "small.gguf"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gguf_is_the_model_it_was_made_from(gguf_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    source = resolve(str(gguf_file), Workspace(tmp_path / "ws"))
    assert (source.name, source.path) == ("small", str(gguf_file.resolve()))
    loaded, wanted = (load_causal_lm(s, torch.float32).eval() for s in (source, ModelSource("t", str(tiny_model))))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, wanted(ids).logits, atol=1e-5, rtol=1e-4)
    loaded.save_pretrained(tmp_path / "saved")
    again = load_causal_lm(ModelSource("s", str(tmp_path / "saved")), torch.float32)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    texts = ["The river rises", " in the hills", "</s> é"]
    tokens, plain = TextTokenizer.load(source), TextTokenizer.load(ModelSource("t", str(tiny_model)))
    assert [tokens.hf.decode(ids) for ids in tokens.encode(texts)] == texts
    assert tokens.encode(texts[:2]) == plain.encode(texts[:2])


def test_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUFnot really")
    with pytest.raises(UserError, match=r"x\.gguf: cannot load the model"):
        load_causal_lm(resolve(str(path), Workspace(tmp_path / "ws")), torch.float32)
