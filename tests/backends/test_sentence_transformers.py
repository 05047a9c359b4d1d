"""The backend ``sentence-transformers``: the library's own vectors, honest counts, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny import TEXTS
from tiny_sentences import KINDS, QUERY_PROMPT, make_router_model, make_sentence_model, make_static_model

from llara_backends.encode_sentence_transformers import SentenceTransformersEncoder
from llara_cli.core.errors import UserError
from llara_cli.model.backends import EncoderOptions
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER
from llara_cli.model.source import ModelSource

LONG = [*TEXTS, "", " ".join(TEXTS * 4), "Where?"]


@pytest.fixture(scope="session", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each kind."""
    return make_sentence_model(tmp_path_factory.mktemp("sentences") / request.param, request.param)


def load(folder: Path, **options: Any) -> SentenceTransformersEncoder:
    """The encoder of a folder."""
    return SentenceTransformersEncoder.load(ModelSource(folder.name, str(folder)), EncoderOptions(**options))


def library(folder: Path) -> SentenceTransformer:
    """The same model by the library alone."""
    with quiet_transformers():
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def test_vectors_are_the_librarys(folder: Path) -> None:
    mine, theirs = load(folder), library(folder)
    theirs.max_seq_length = min(theirs.max_seq_length, 255 if folder.name == "roberta" else 256)
    passages = theirs.encode_document(LONG, normalize_embeddings=True, show_progress_bar=False)
    queries = theirs.encode_query(LONG, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(mine.encode(LONG, "passage").vectors, passages, atol=1e-6)
    np.testing.assert_allclose(mine.encode(LONG, "query").vectors, queries, atol=1e-6)
    assert (np.abs(passages - queries).max() > 1e-3) == (folder.name == "llama")


def test_counts_are_those_of_the_text(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "llama", "llama")
    words = library(folder).tokenizer
    text = "The sea"
    alone = len(words(text, add_special_tokens=False)["input_ids"])
    prompt = len(words(QUERY_PROMPT, add_special_tokens=False)["input_ids"])
    encoder = load(folder, query_length=prompt + 4)
    assert encoder.encode([text, "", text], "passage").tokens == 2 * alone
    found = encoder.encode(["word " * 50, ""], "query")
    # behind <s> and the prompt, whose last space joins the text's first word
    assert (found.tokens, found.cut, found.empty) == (4, 1, 1)
    with pytest.raises(UserError, match=f"too short: the prompt alone needs {prompt + 1}, so >= {prompt + 2}"):
        load(folder, query_length=prompt + 1)


def test_lengths_are_the_models_own_and_end_at_its_positions(folder: Path) -> None:
    source = ModelSource("tiny", str(folder))
    own, most = {"bert": (128, 256), "roberta": (255, 255), "llama": (256, 256)}[folder.name]
    assert SentenceTransformersEncoder.choose_length(source, None) == own
    assert SentenceTransformersEncoder.choose_length(source, most) == most
    assert load(folder, passage_length=most).encode(["word " * 400], "passage").cut == 1
    with pytest.raises(UserError, match=f"above the model's {most} positions"):
        SentenceTransformersEncoder.choose_length(source, most + 1)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_normalized_vectors_close_by(folder: Path, dtype: str) -> None:
    half, full = load(folder, dtype=dtype), load(folder)
    assert {weight.dtype for weight in half.model.parameters()} == {
        getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype])
    }
    vectors = half.encode(TEXTS, "passage").vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * full.encode(TEXTS, "passage").vectors).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_pickle_is_refused_wherever_it_lies(tmp_path: Path, kind: str) -> None:
    folder = make_sentence_model(tmp_path / kind, kind)
    weights = folder / ("model.safetensors" if kind == "bert" else "2_Dense/model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    load(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


def test_code_of_the_checkpoint_does_not_run_unasked(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "bert")
    (folder / "own.py").write_text("raise RuntimeError('it ran')\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="cannot load it"):
        load(folder)


def test_what_only_the_other_encoder_can_run_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    options = EncoderOptions()
    with pytest.raises(UserError, match="`encoder='torch'`"):
        SentenceTransformersEncoder.load(ModelSource("tiny", str(tiny_model), None, PAPER), options)
    with pytest.raises(UserError, match="`encoder='torch'`"):
        load(tiny_model, attention="varlen")
    with pytest.raises(UserError, match="GGUF"):
        SentenceTransformersEncoder.load(ModelSource("tiny", str(tmp_path), "tiny.gguf"), options)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load it"):
        SentenceTransformersEncoder.load(ModelSource("empty", str(tmp_path)), options)


def test_the_fingerprint_covers_the_modules(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "bert")
    seen = {ModelSource("bert", str(folder)).fingerprint()}
    for name in (
        "1_Pooling/config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ):
        file = folder / name
        assert file.is_file()
        file.write_text(file.read_text() + "\n")
        seen.add(ModelSource("bert", str(folder)).fingerprint())
    assert len(seen) == 5
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note.json").write_text("{}")
    (folder / "README.md").write_text("changed")
    assert ModelSource("bert", str(folder)).fingerprint() in seen
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert ModelSource("bert", str(moved)).fingerprint() in seen


def test_a_model_without_a_transformer(tmp_path: Path) -> None:
    folder = make_static_model(tmp_path / "static")
    source = ModelSource("static", str(folder))
    assert SentenceTransformersEncoder.choose_length(source, None) is None
    assert SentenceTransformersEncoder.facts(source).dim == 16
    found = load(folder).encode(LONG, "passage")
    theirs = library(folder).encode_document(LONG, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(found.vectors, theirs, atol=1e-6)
    assert (found.cut, found.empty) == (0, 1)
    with pytest.raises(UserError, match="reads whole texts"):
        load(folder, passage_length=20)


def test_a_model_with_a_way_for_each_role(tmp_path: Path) -> None:
    folder = make_router_model(tmp_path / "router")
    mine, theirs = load(folder, passage_length=30), library(folder)
    queries = theirs.encode_query(LONG, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(mine.encode(LONG, "query").vectors, queries, atol=1e-6)
    passages = mine.encode(LONG, "passage")
    theirs.max_seq_length = 30
    wanted = theirs.encode_document(LONG, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(passages.vectors, wanted, atol=1e-6)
    assert passages.cut == 1
    assert np.abs(passages.vectors - queries).max() > 1e-3
    before = ModelSource("router", str(folder)).fingerprint()
    weights = folder / "query_0_Transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert ModelSource("router", str(folder)).fingerprint() != before


def _rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: weight.contiguous() for name, weight in change(load_file(path)).items()}, path)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_weights_that_are_missing_are_named(tmp_path: Path, kind: str) -> None:
    folder = make_sentence_model(tmp_path / kind, kind)
    wanted = load(folder).encode(["a text"], "passage").vectors
    _rewritten(folder, lambda old: {f"module._orig_mod.{name}": weight for name, weight in old.items()})
    np.testing.assert_array_equal(load(folder).encode(["a text"], "passage").vectors, wanted)
    _rewritten(folder, lambda old: {name.removeprefix("module._orig_mod."): weight for name, weight in old.items()})
    _rewritten(folder, lambda old: {name: weight for name, weight in old.items() if not name.startswith("pooler.")})
    np.testing.assert_array_equal(load(folder).encode(["a text"], "passage").vectors, wanted)
    first = next(iter(sorted(load_file(folder / "model.safetensors"))))
    _rewritten(folder, lambda old: {name: weight for name, weight in old.items() if name != first})
    with pytest.raises(UserError, match=rf"1 missing: {first}$"):
        load(folder)


@pytest.mark.parametrize("route", ["query", "document"])
def test_a_missing_weight_of_a_route_is_named(tmp_path: Path, route: str) -> None:
    folder = make_router_model(tmp_path / "router")
    _rewritten(folder / f"{route}_0_Transformer", lambda old: dict(list(old.items())[1:]))
    with pytest.raises(UserError, match="1 missing: "):
        load(folder)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "bert")
    _rewritten(folder, lambda old: old | {"embeddings.LayerNorm.bias": torch.zeros(5)})
    with pytest.raises(UserError, match=r"1 of another shape: embeddings\.LayerNorm\.bias \(5,\) instead of \(32,\)$"):
        load(folder)


def test_of_a_book_only_the_beginning_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the vector and the counts of the whole."""
    mine, theirs = load(folder, passage_length=60, query_length=60), library(folder)
    book = " ".join(TEXTS * 300)
    seen: list[str] = []
    theirs.max_seq_length = 60
    wanted = theirs.encode_query([book], normalize_embeddings=True, show_progress_bar=False)
    preprocess = mine.model.preprocess

    def watched(inputs: list[str], **options: Any) -> Any:
        seen.extend(inputs)
        return preprocess(inputs, **options)

    monkeypatch.setattr(mine.model, "preprocess", watched)
    found = mine.encode([book, "", "The sea"], "query")
    np.testing.assert_allclose(found.vectors[:1], wanted, atol=1e-6)
    assert (found.cut, found.empty) == (1, 1)
    assert max(map(len, seen)) < 6000
    short = mine.encode([" ".join(TEXTS * 6), "", "The sea"], "query")
    assert (found.tokens, found.cut) == (short.tokens, short.cut)


def test_a_vector_does_not_depend_on_longer_texts_beside_it(tmp_path: Path) -> None:
    """LongRoPE: the factors go by the longest text of a forward."""
    model = load(make_sentence_model(tmp_path / "phi3", "phi3"))
    texts = ["The sea", " ".join(TEXTS), "How far is it?"]
    together = model.encode(texts, "passage").vectors
    alone = np.concatenate([model.encode([text], "passage").vectors for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_tokens_without_an_embedding_are_named(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 400, "content": "zebra", "special": False, "normalized": True}
    tokenizer["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokens that the model does not know: 'zebra' \(400\)"):
        load(folder)


def test_an_adapter_within_is_refused(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "bert")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="its Transformer is an adapter of peft"):
        load(folder)
