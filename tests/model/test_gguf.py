"""A ``.gguf`` file, written here from a tiny model, loads as the same model and can be saved like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import SHAPE
from tokenizers.pre_tokenizers import ByteLevel

from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.model.gguf_tokenizer import READS_RIGHT
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.source import ModelSource, resolve
from llara_cli.model.tokenizer import TextTokenizer

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


def write_gguf(
    model: Path,
    path: Path,
    *,
    without: str = "",
    split: int = 0,
    more: dict[str, np.ndarray] | None = None,
    scaling: str | None = None,
    theta: float = 10000.0,
    numbers: dict[str, int] | None = None,
) -> Path:
    """A tiny Llama as GGUF, in float32; in parts of so many tensors each, as llama.cpp splits a file."""
    source = ModelSource("tiny", str(model))
    tokenizer = TextTokenizer.load(source).hf
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(theta)
    for key, value in (numbers or {}).items():
        writer.add_uint32(f"llama.{key}", value)
    if scaling is not None:
        writer.add_string("llama.rope.scaling.type", scaling)
        writer.add_rope_scaling_factor(4.0)
    writer.add_vocab_size(len(tokenizer))
    state = tokenizer.backend_tokenizer.to_str()
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(state)["model"]["merges"]]
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
        if gguf_name(name) != without:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny Llama as GGUF, in float32."""
    return write_gguf(tiny_model, tmp_path / "small.gguf")


def logits(source: ModelSource) -> torch.Tensor:
    """Of a few tokens."""
    with torch.no_grad():
        found: torch.Tensor = load_causal_lm(source, torch.float32).eval()(torch.arange(3, 40)[None]).logits
    return found


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
    assert tokens.encode(texts) == plain.encode(texts)
    assert [tokens.hf.decode(ids) for ids in tokens.encode(texts)] == texts
    assert (tokens.hf.bos_token_id, tokens.hf.eos_token_id, tokens.start_ids) == (1, 2, [])


def vocabulary(
    path: Path, architecture: str, model: str, tokens: list[str], control: int, **more: Any
) -> TextTokenizer:
    """The tokenizer of a GGUF that holds nothing else; its first ``control`` tokens are the special ones."""
    writer = gguf.GGUFWriter(path, architecture)
    for add in (writer.add_embedding_length, writer.add_block_count, writer.add_head_count, writer.add_context_length):
        add(8)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * control + [1] * (len(tokens) - control))
    writer.add_eos_token_id(control - 1)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return TextTokenizer.load(resolve(str(path), Workspace(path.parent / "ws")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sentencepiece_vocabulary_keeps_leading_spaces_and_its_special_tokens(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "h", "i", "hi", "\u2581hi"]
    more = {"token_scores": [-float(number) for number in range(len(tokens))], "bos_token_id": 1, "unk_token_id": 0}
    found = vocabulary(tmp_path / "v.gguf", "llama", "llama", tokens, 3, **more)
    assert found.encode(["hi", " hi", "  hi"]) == [[7], [3, 7], [3, 3, 7]]
    assert (found.start_ids, found.hf.eos_token_id, found.special_ids) == ([1], 2, {0, 1, 2})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe"])
def test_a_byte_level_vocabulary_is_split_as_it_says_or_refused(tmp_path: Path, split: str) -> None:
    tokens = ["<start>", "<end>", *ByteLevel.alphabet(), "12", "34"]
    more = {"token_merges": ["1 2", "3 4"], "tokenizer_pre": split, "bos_token_id": 0}
    if split == "llama-bpe" and not READS_RIGHT:
        with pytest.raises(UserError, match=r"does not read its tokenizer \(llama-bpe of llama\) right: pip install"):
            vocabulary(tmp_path / "v.gguf", "llama", "gpt2", tokens, 2, **more)
        return
    found = vocabulary(tmp_path / "v.gguf", "llama", "gpt2", tokens, 2, **more)
    pieces = found.hf.convert_ids_to_tokens(found.encode([" 1234"])[0])
    assert pieces == (["\u0120", "12", "34"] if split == "gpt-2" else ["\u0120", "12", "3", "4"])
    assert (found.start_ids, found.hf.eos_token_id, found.hf.bos_token_id) == ([], 1, 0)
    assert found.hf.decode(found.encode([" a"])[0]) == " a"


def test_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUFnot really")
    with pytest.raises(UserError, match=r"x\.gguf: cannot load the model"):
        load_causal_lm(resolve(str(path), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("named", [1, 3])
def test_all_parts_of_a_split_gguf_are_read(tiny_model: Path, tmp_path: Path, named: int) -> None:
    write_gguf(tiny_model, tmp_path / "big.gguf", split=5)
    assert len(list(tmp_path.glob("big-0000?-of-00005.gguf"))) == 5
    workspace = Workspace(tmp_path / "ws")
    source = resolve(str(tmp_path / f"big-0000{named}-of-00005.gguf"), workspace)
    assert source.name == "big"
    torch.testing.assert_close(logits(source), logits(ModelSource("t", str(tiny_model))), atol=1e-5, rtol=1e-4)
    assert TextTokenizer.load(source).encode(["The river"]) == TextTokenizer.load(
        ModelSource("t", str(tiny_model))
    ).encode(["The river"])
    before = source.fingerprint()
    last = tmp_path / "big-00005-of-00005.gguf"
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    assert source.fingerprint() != before
    last.unlink()
    with pytest.raises(UserError, match=r"parts of this split GGUF are missing: big-00005-of-00005\.gguf$"):
        resolve(str(tmp_path / "big-00001-of-00005.gguf"), workspace)


def test_a_part_under_another_name_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_model, tmp_path / "big.gguf", split=5)
    (tmp_path / "big-00001-of-00005.gguf").rename(tmp_path / "model.gguf")
    with pytest.raises(UserError, match="one of 5 parts of a split GGUF: keep the names"):
        load_causal_lm(resolve(str(tmp_path / "model.gguf"), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tensor_that_is_missing_is_named(tiny_model: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny_model, tmp_path / "small.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight$"):
        load_causal_lm(resolve(str(path), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tensor_that_has_no_place_is_named(tiny_model: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny_model, tmp_path / "small.gguf", more={"blk.0.attn_gate.weight": np.ones(4, np.float32)})
    with pytest.raises(UserError, match=r"1 unexpected: blk\.0\.attn_gate\.weight$"):
        load_causal_lm(resolve(str(path), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rope_scaling_of_llama_3_is_read(tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp keeps it as a tensor, which transformers leaves out."""
    scaling = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    rope = {"scaled": scaling, "plain": {"rope_type": "default", "rope_theta": 5e5}}
    for name, parameters in rope.items():
        shutil.copytree(tiny_model, tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": parameters}))
    wanted, unscaled = (ModelSource(name, str(tmp_path / name)) for name in rope)
    plain, scaled = (load_causal_lm(source, torch.float32) for source in (unscaled, wanted))
    factors = (plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq).numpy()
    assert factors.max() == 8
    path = write_gguf(tiny_model, tmp_path / "small.gguf", more={"rope_freqs.weight": factors}, theta=5e5)
    source = resolve(str(path), Workspace(tmp_path / "ws"))
    torch.testing.assert_close(logits(source), logits(wanted), atol=1e-5, rtol=1e-4)
    loaded = load_causal_lm(source, torch.float32)
    loaded.save_pretrained(tmp_path / "saved")
    for model in (loaded, load_causal_lm(ModelSource("s", str(tmp_path / "saved")), torch.float32)):
        torch.testing.assert_close(model.model.rotary_emb.inv_freq, scaled.model.rotary_emb.inv_freq)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["metadata", "tensor"])
def test_a_rope_scaling_that_cannot_be_read_is_refused(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    more = {"rope_freqs.weight": np.array([1, 2, 1, 2], np.float32)} if kind == "tensor" else {}
    scaling = "yarn" if kind == "metadata" else None
    path = write_gguf(tiny_model, tmp_path / "small.gguf", more=more, scaling=scaling)
    with pytest.raises(UserError, match=r"its RoPE scaling \(.*\).* cannot be read from a GGUF"):
        load_causal_lm(resolve(str(path), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rope.dimension_count": 4}, "of another shape: |size mismatch for "),
        ({"attention.sliding_window": 32}, r"a sliding window of 32 tokens \(attention\.sliding_window\)"),
        ({"rope.scale_linear": 4}, r"a RoPE scaling of 4 \(rope\.scale_linear\)"),
        ({"rope.dimension_count": 8, "attention.sliding_window": 0}, ""),
    ],
)
def test_metadata_that_would_be_ignored_are_refused(
    tiny_model: Path, tmp_path: Path, numbers: dict[str, int], message: str
) -> None:
    path = write_gguf(tiny_model, tmp_path / "small.gguf", numbers=numbers)
    source = resolve(str(path), Workspace(tmp_path / "ws"))
    if not message:
        torch.testing.assert_close(logits(source), logits(ModelSource("t", str(tiny_model))), atol=1e-5, rtol=1e-4)
        return
    with pytest.raises(UserError, match=message):
        load_causal_lm(source, torch.float32)
