"""A checkpoint is loaded whole or not at all: whatever it lacks, or has too much of, is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Llara, write_jsonl
from safetensors.torch import load_file, save_file
from tiny import TEXTS, make_model
from torch import Tensor

from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.model.loading import lacks_projection, load_causal_lm
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.source import ModelSource, resolve

Weights = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def changed(
    model: Path, folder: Path, change: Callable[[Weights], Weights], config: dict[str, Any] | None = None
) -> Path:
    """A copy of a checkpoint with other weights, and other fields of its configuration."""
    shutil.copytree(model, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return folder


def logits(folder: Path) -> Tensor:
    """Of a few tokens."""
    model = load_causal_lm(ModelSource("m", str(folder)), torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(torch.arange(3, 20)[None]).logits
    return found


def shards(folder: Path, left_out: str = "") -> Path:
    """The weights of a checkpoint in three files with their index; one of the files may be left out."""
    weights = sorted(load_file(folder / "model.safetensors").items())
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        if name != left_out:
            save_file(dict(weights[number::3]), folder / name)
    places = {weight: names[number % 3] for number, (weight, _) in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace(".layers.1.", ".layers.1._orig_mod."),
        lambda name: "_orig_mod." + name.replace(".layers.1.", ".layers.1._orig_mod."),
    ],
    ids=["compiled", "ddp", "compiled in ddp", "a layer compiled", "all compiled"],
)
def test_names_of_wrapped_models_are_understood(tiny_model: Path, tmp_path: Path, wrapped: Any) -> None:
    saved = changed(tiny_model, tmp_path / "m", lambda old: {wrapped(name): weight for name, weight in old.items()})
    assert torch.equal(logits(saved), logits(tiny_model))
    load_causal_lm(ModelSource("m", str(saved)), torch.float32).save_pretrained(tmp_path / "again")
    names = load_file(tmp_path / "again" / "model.safetensors").keys()
    assert names == load_file(tiny_model / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda w: {n: v for n, v in w.items() if n != UP}, {}, rf"1 missing: {UP}$"),
        (
            lambda w: w,
            {"num_hidden_layers": 3},
            r"9 missing: model\.layers\.2\.input_layernorm\.weight, (\S+, ){3}\S+\.post_\S+\.weight and 4 more$",
        ),
        (lambda w: w, {"num_hidden_layers": 1}, r"9 unexpected: model\.layers\.1\.input_layernorm\.weight, "),
        (
            lambda w: w | {"model.layers.0.gate.weight": w[UP].clone()},
            {},
            r"1 unexpected: model\.layers\.0\.gate\.weight$",
        ),
        (lambda w: w | {"other.weight": w[UP].clone()}, {}, r"1 unexpected: other\.weight$"),
        (lambda w: w | {UP: w[UP][:7]}, {}, rf"1 of another shape: {UP} \(7, 32\) instead of \(48, 32\)$"),
        (lambda w: w, {"vocab_size": 401}, r"2 of another shape: lm_head\.weight \(400, 32\) instead of \(401, 32\), "),
        (lambda w: {f"x.{n}": v for n, v in w.items()}, {}, r"20 missing: .* and 15 more; 21 unexpected: x\."),
        (lambda w: {}, {}, "20 missing: "),
    ],
    ids=["absent", "layers", "fewer layers", "extra", "extra on top", "shape", "vocabulary", "prefix", "none"],
)
def test_what_is_missing_unexpected_or_of_another_shape_is_named(
    tiny_model: Path, tmp_path: Path, change: Any, config: dict[str, Any], message: str
) -> None:
    saved = changed(tiny_model, tmp_path / "m", change, config)
    with pytest.raises(UserError, match=message):
        logits(saved)


def test_what_is_not_used_may_be_there(tiny_model: Path, tmp_path: Path) -> None:
    extra = {
        "score.weight": torch.zeros(1, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "v_head.summary.bias": torch.zeros(1),
    }
    assert torch.equal(logits(changed(tiny_model, tmp_path / "m", lambda old: old | extra)), logits(tiny_model))


def test_a_tied_projection_need_not_be_there(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", "qwen")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = load_causal_lm(ModelSource("m", str(tied)), torch.float32)
    assert not lacks_projection(model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["causal model", "body alone"])
def test_without_a_projection_one_can_encode_and_finetune_but_not_pretrain(
    llara: Llara, tiny_model: Path, tmp_path: Path, train: Path, beir: Path, corpus: Path, prefix: str
) -> None:
    def without(weights: Weights) -> Weights:
        return {
            prefix + name.removeprefix("model."): weight for name, weight in weights.items() if name != "lm_head.weight"
        }

    bare = changed(tiny_model, tmp_path / "bare", without)
    assert lacks_projection(load_causal_lm(ModelSource("m", str(bare)), torch.float32))
    assert llara("encode", beir, "--model", bare, "--name", "bare").code == 0
    assert llara("encode", beir, "--model", tiny_model, "--name", "whole").code == 0
    vectors = [(tmp_path / "ws" / "embeddings" / name / "vectors-00000.npy").read_bytes() for name in ("bare", "whole")]
    assert vectors[0] == vectors[1]
    refused = llara("pretrain", corpus, "--model", bare, "--name", "p", "--max-steps", 1)
    assert refused.code == 2
    assert "no vocabulary projection" in refused.error
    assert not (tmp_path / "ws" / "models" / "p").exists()
    for backend in ("full", "lora"):
        steps = ("--max-steps", 1, "--batch-size", 2)
        tuned = llara("finetune", train, "--model", bare, "--name", backend, "--backend", backend, *steps)
        assert tuned.code == 0, tuned.err
        saved = tmp_path / "ws" / "models" / backend
        assert "lm_head.weight" not in load_file(saved / "model.safetensors")
        assert lacks_projection(load_causal_lm(ModelSource("m", str(saved)), torch.float32))
        assert llara("pretrain", corpus, "--model", saved, "--name", "p", "--max-steps", 1).code == 2


def test_shards_are_read_and_a_missing_one_is_named(tiny_model: Path, tmp_path: Path) -> None:
    whole = shards(changed(tiny_model, tmp_path / "whole", lambda old: old))
    assert torch.equal(logits(whole), logits(tiny_model))
    part = "model-00002-of-00003.safetensors"
    torn = shards(changed(tiny_model, tmp_path / "torn", lambda old: old), part)
    with pytest.raises(UserError, match=rf"torn: {part} of the 3 files in model\.safetensors\.index\.json missing"):
        logits(torn)


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 12345678\n"
    )


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pointer, r"model\.safetensors: a git-lfs pointer, not the file itself: run git lfs pull"),
        (_cut, r"model\.safetensors: damaged or cut short \(.*\): copy or download it again"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), r"model\.safetensors: damaged or cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: damaged or cut short"),
        (_pickle, r"pytorch_model\.bin is a pickle, which could run code.*safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights in it: model\.safetensors .*is missing"),
    ],
    ids=["lfs pointer", "cut", "header too large", "empty", "pickle", "none"],
)
def test_files_that_are_no_weights_are_named(
    llara: Llara, tiny_model: Path, tmp_path: Path, beir: Path, damage: Any, message: str
) -> None:
    saved = changed(tiny_model, tmp_path / "m", lambda old: old)
    damage(saved)
    with pytest.raises(UserError, match=message):
        logits(saved)
    outcome = llara("encode", beir, "--model", saved)
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: {saved}")


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", "fp8", "made-up"])
def test_weights_quantized_otherwise_are_refused(llara: Llara, tiny_model: Path, beir: Path, method: str) -> None:
    config = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128}}
    saved = changed(tiny_model, beir.parent / method, lambda old: old, config)
    for arguments in (("encode", beir), ("pretrain", beir), ("encode", beir, "--encoder", "sentence-transformers")):
        outcome = llara(*arguments, "--model", saved)
        assert outcome.code == 2
        assert f"quantized with {method}, which cannot be read here: name the model" in outcome.error
        assert "gguf]" not in outcome.error


def test_a_name_that_no_longer_fits(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        resolve(str(tmp_path / "empty"), Workspace(tmp_path / "ws"))


def test_bitsandbytes_weights_are_trained_from_and_load_again(
    llara: Llara, tmp_path: Path, corpus: Path, train: Path
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from llara_cli.model.loading import quiet_transformers

    wide = make_model(tmp_path / "wide", "wide")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    with quiet_transformers():
        quantized = AutoModelForCausalLM.from_pretrained(wide, quantization_config=settings, dtype=torch.float32)
        quantized.save_pretrained(tmp_path / "four")
    for file in wide.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "four")
    for layer in quantized.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # its kernel wants wider layers than these
            layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        wanted = quantized(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(logits(tmp_path / "four"), wanted, atol=1e-4, rtol=1e-3)
    steps = ("--max-steps", 1, "--batch-size", 2, "--model", tmp_path / "four")
    for backend, verb, data in (
        ("full", "pretrain", corpus),
        ("lora", "finetune", train),
        ("qlora", "pretrain", corpus),
    ):
        made = llara(verb, data, "--name", backend, "--backend", backend, "--learning-rate", 1e-9, *steps)
        assert made.code == 0, made.err
        saved = tmp_path / "ws" / "models" / backend
        assert "quantization_config" not in json.loads((saved / "config.json").read_text())
        torch.testing.assert_close(logits(saved), wanted, atol=2e-2 if backend == "qlora" else 1e-3, rtol=1e-2)


def make_adapter(base: Path, folder: Path, **settings: Any) -> Tensor:
    """Save a random adapter of a model by peft's own hands; the logits that peft's model gives."""
    from peft import LoraConfig, get_peft_model

    model = load_causal_lm(ModelSource("m", str(base)), torch.float32)
    model.config._name_or_path = str(base)
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **settings))
    adapted.eval().save_pretrained(folder)
    with torch.no_grad():
        found: Tensor = adapted(torch.arange(3, 20)[None]).logits
    return found


def test_an_adapter_is_loaded_on_its_base(llara: Llara, tiny_model: Path, tmp_path: Path, train: Path) -> None:
    wanted = make_adapter(tiny_model, tmp_path / "adapter")
    source = resolve(str(tmp_path / "adapter"), Workspace(tmp_path / "ws"))
    assert source.base is not None
    assert source.base.path == str(tiny_model.resolve())
    with torch.no_grad():
        found = load_causal_lm(source, torch.float32).eval()(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    documents = write_jsonl(tmp_path / "d.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(TEXTS)])
    encoded = llara("encode", documents, "--model", tmp_path / "adapter")
    assert encoded.code == 0, encoded.err
    assert f"adapter: an adapter on the base {tiny_model}" in encoded.err
    steps = ("--max-steps", 1, "--batch-size", 2, "--model", tmp_path / "adapter", "--learning-rate", 1e-9)
    tuned = llara("finetune", train, "--name", "ft", "--no-merge", *steps)
    assert tuned.code == 0, tuned.err
    again = load_causal_lm(resolve("ft", Workspace(tmp_path / "ws")), torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(torch.arange(3, 20)[None]).logits, wanted, atol=1e-4, rtol=1e-4)


def test_the_base_is_part_of_an_adapters_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    base = changed(tiny_model, tmp_path / "base", lambda old: old)
    make_adapter(base, tmp_path / "adapter")
    workspace = Workspace(tmp_path / "ws")
    before = resolve(str(tmp_path / "adapter"), workspace).fingerprint()
    weights = load_file(base / "model.safetensors")
    save_file(weights | {UP: weights[UP] + 1}, base / "model.safetensors")
    assert resolve(str(tmp_path / "adapter"), workspace).fingerprint() != before


def test_new_tokens_of_an_adapter_come_with_it(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from llara_cli.model.tokenizer import TextTokenizer

    source = ModelSource("m", str(tiny_model))
    model, tokenizer = load_causal_lm(source, torch.float32), TextTokenizer.load(source)
    tokenizer.add_tokens(["<q>"])
    model.resize_token_embeddings(401, mean_resizing=False)
    model.config._name_or_path = str(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"])).eval()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save(tmp_path / "adapter")
    ids = torch.tensor([[3, 400, 5]])
    loaded = resolve(str(tmp_path / "adapter"), Workspace(tmp_path / "ws"))
    with torch.no_grad():
        wanted, found = adapted(ids).logits, load_causal_lm(loaded, torch.float32).eval()(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert "<q>" in TextTokenizer.load(loaded).hf.get_vocab()
    assert ModelFacts.of(loaded).embedded_tokens == 401


def test_an_adapter_with_embeddings_of_its_own_can_be_planned(
    llara: Llara, tiny_model: Path, tmp_path: Path, corpus: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from llara_cli.model.recipe import RELEASED
    from llara_cli.model.tokenizer import TextTokenizer

    source = ModelSource("m", str(tiny_model))
    model, tokenizer = load_causal_lm(source, torch.float32), TextTokenizer.load(source)
    tokenizer.add_tokens(RELEASED.new_tokens)
    model.resize_token_embeddings(416, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save(tmp_path / "adapter")
    steps = ("--recipe", "released", "--max-steps", 1, "--batch-size", 2, "--name", "m")
    for flags in (("--dry-run",), ()):
        outcome = llara("pretrain", corpus, "--model", tmp_path / "adapter", *steps, *flags)
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("bases", [("../b", "../a"), ("../a", "../a")], ids=["each other", "itself"])
def test_adapters_in_a_circle_are_refused(tiny_model: Path, tmp_path: Path, bases: tuple[str, str]) -> None:
    for name, base in zip("ab", bases, strict=True):
        make_adapter(tiny_model, tmp_path / name)
        _tell(tmp_path / name, base_model_name_or_path=base)
    with pytest.raises(UserError, match=r"which is an adapter itself: merge that one first$"):
        resolve(str(tmp_path / "a"), Workspace(tmp_path / "ws"))


@pytest.mark.parametrize("place", ["../secret.safetensors", "sub/secret.safetensors", "/etc/secret.safetensors"])
def test_an_index_names_no_files_outside_its_folder(tiny_model: Path, tmp_path: Path, place: str) -> None:
    saved = changed(tiny_model, tmp_path / "m", lambda old: old)
    (saved / "sub").mkdir()
    shutil.copy(saved / "model.safetensors", tmp_path / "secret.safetensors")
    shutil.move(saved / "model.safetensors", saved / "sub" / "secret.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(tmp_path / "secret.safetensors"), place)}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"names files outside its folder: {place}$"):
        logits(saved)


def test_weights_that_are_not_finite_are_told_before_any_work(
    llara: Llara, tiny_model: Path, beir: Path, corpus: Path
) -> None:
    def spoil(weights: Weights) -> Weights:
        return weights | {"model.norm.weight": torch.full_like(weights["model.norm.weight"], torch.nan)}

    saved = changed(tiny_model, beir.parent / "nan", spoil)
    for arguments in (("encode", beir), ("pretrain", corpus, "--max-steps", 1)):
        outcome = llara(*arguments, "--model", saved)
        assert outcome.code == 1
        assert "llama gives NaN or infinite hidden states: its weights are damaged" in outcome.error


@pytest.mark.parametrize("folder", ["plain", "my-memory-model"])
def test_a_folders_name_decides_nothing(llara: Llara, tiny_model: Path, beir: Path, folder: str) -> None:
    saved = changed(tiny_model, beir.parent / folder, lambda old: old)
    (saved / "config.json").write_text("{")
    assert llara("encode", beir, "--model", saved).code == 2


def test_an_adapter_of_the_body_alone_is_put_on_it(tiny_model: Path, tmp_path: Path) -> None:
    """As embedders are trained: without the vocabulary projection."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    body = AutoModel.from_pretrained(tiny_model)
    torch.manual_seed(5)
    adapted = get_peft_model(body, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_causal_lm(resolve(str(tmp_path / "adapter"), Workspace(tmp_path / "ws")), torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted, found = adapted(ids).last_hidden_state, loaded.get_decoder()(ids).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert loaded(ids).logits.shape == (1, 17, 400)


def test_lora_on_tied_embeddings_is_refused(llara: Llara, tmp_path: Path, corpus: Path) -> None:
    tied = make_model(tmp_path / "tied", "qwen")
    flags = ("--model", tied, "--backend", "lora", "--max-steps", 1)
    outcome = llara("pretrain", corpus, *flags, "--lora-targets", "embed_tokens")
    assert outcome.code == 2
    assert "--lora-targets embed_tokens: these embeddings are the LM head's weights too (tied)" in outcome.error
    make_adapter(tied, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    extra = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 400)}
    save_file(load_file(path) | extra, path)
    with pytest.raises(UserError, match="LoRA on embeddings that are the LM head's weights too"):
        load_causal_lm(resolve(str(tmp_path / "adapter"), Workspace(tmp_path / "ws")), torch.float32)


def test_targets_that_train_nothing_are_refused(llara: Llara, tiny_model: Path, train: Path, corpus: Path) -> None:
    flags = ("--model", tiny_model, "--max-steps", 1)
    for arguments, message in (
        (("finetune", train, "--lora-targets", "lm_head"), "nothing would be trained"),
        (("finetune", train, "--lora-targets", "q_proj,nothing"), "--lora-targets nothing: no layer of that name"),
        (("pretrain", corpus, "--lora-targets", "q_proj"), "--lora-targets is for --backend lora or qlora"),
    ):
        outcome = llara(*arguments, *flags)
        assert outcome.code == 2
        assert message in outcome.error


def test_codes_without_a_configuration_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    saved = changed(tiny_model, tmp_path / "m", lambda old: old | {UP: (old[UP] * 100).to(torch.int8)})
    with pytest.raises(UserError, match=rf"1 tensors are quantized \(I8\), .*: {UP}$"):
        logits(saved)


def _name_nobody(folder: Path) -> None:
    _tell(folder, base_model_name_or_path=None)


def _tell(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _lose_one(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weights[name] for name in sorted(weights)[1:]}, path)


def _add_one(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    save_file(weights | {first.replace("layers.0", "layers.7"): weights[first].clone()}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_name_nobody, r"adapter_config\.json: does not name the base model"),
        (
            lambda f: _tell(f, base_model_name_or_path="/no/such"),
            "the base model of this adapter was not found: no such model: /no/such",
        ),
        (lambda f: _tell(f, base_model_name_or_path=str(f)), "which is an adapter itself"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (_lose_one, r"the adapter lacks weights that its configuration names: base_model\.model\."),
        (_add_one, r"weights for layers that the base model does not have: base_model\.model\.\S+layers\.7"),
        (lambda f: _tell(f, peft_type="PREFIX_TUNING"), "an adapter of kind PREFIX_TUNING adds tokens to the input"),
        (lambda f: _tell(f, layer_replication=[[0, 2], [1, 2]]), r"\(layer_replication\) cannot be merged"),
        (
            lambda f: _tell(f, base_model_name_or_path="org/base", revision="abc"),
            "is for revision 'abc' of org/base: download that revision",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "full weights .* and an adapter"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "full weights .* and an adapter"),
    ],
)
def test_an_adapter_that_cannot_be_put_on_its_base(tiny_model: Path, tmp_path: Path, damage: Any, message: str) -> None:
    make_adapter(tiny_model, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(UserError, match=message):
        load_causal_lm(resolve(str(tmp_path / "adapter"), Workspace(tmp_path / "ws")), torch.float32)


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "encode"])
def test_full_weights_beside_an_adapter_are_refused_before_any_work(
    llara: Llara, tiny_model: Path, tmp_path: Path, corpus: Path, train: Path, beir: Path, verb: str
) -> None:
    both = changed(tiny_model, tmp_path / "both", lambda old: old)
    make_adapter(tiny_model, tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, both)
    data = {"pretrain": corpus, "finetune": train, "encode": beir}[verb]
    outcome = llara(verb, data, "--model", both)
    assert outcome.code == 2
    assert "full weights (model.safetensors) and an adapter (adapter_config.json)" in outcome.error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 0}, "cannot load the model"),
        ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"model_type": "made-up"}, "made-up"),
        ({"model_type": "t5"}, "'t5' is not a causal language model"),
        ({"model_type": "clip"}, "'clip' is not a causal language model"),
        ({"quantization_config": "awq"}, "cannot load the model"),
    ],
)
def test_a_configuration_that_describes_no_model(
    llara: Llara, tiny_model: Path, beir: Path, fields: dict[str, Any], message: str
) -> None:
    saved = changed(tiny_model, beir.parent / "m", lambda old: old, fields)
    for arguments in (("encode", beir), ("pretrain", beir, "--dry-run")):
        outcome = llara(*arguments, "--model", saved)
        assert outcome.code == 2
        assert outcome.error.startswith(f"error: {saved}: ")
        assert message in outcome.error


def test_a_plan_finds_missing_weights_too(llara: Llara, tiny_model: Path, tmp_path: Path, corpus: Path) -> None:
    torn = shards(changed(tiny_model, tmp_path / "torn", lambda old: old), "model-00002-of-00003.safetensors")
    outcome = llara("pretrain", corpus, "--model", torn, "--dry-run")
    assert outcome.code == 2
    assert "model-00002-of-00003.safetensors of the 3 files" in outcome.error
