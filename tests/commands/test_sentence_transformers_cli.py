"""Any model of sentence-transformers through the command line, one that is no causal language model too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from program import Llara
from tiny_sentences import make_sentence_model

USED = ("--encoder", "sentence-transformers")


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and a decoder with a prompt for queries."""
    return make_sentence_model(tmp_path_factory.mktemp("sentences") / request.param, request.param)


def test_from_texts_to_an_answer_and_its_measure(llara: Llara, beir: Path, model: Path, tmp_path: Path) -> None:
    plan = llara("encode", beir, "--model", model, *USED, "--dry-run", "--json").json
    assert (plan["texts"], plan["dim"], plan["max_length"]) == (5, 32, 128 if model.name == "bert" else 256)
    assert not (tmp_path / "ws/embeddings").exists()
    encoded = llara("encode", beir, "--model", model, *USED, "--json")
    assert encoded.code == 0, encoded.err
    assert (encoded.json["count"], encoded.json["dim"]) == (5, 32)
    assert encoded.json["tokens"] > 50
    settings = json.loads((Path(encoded.json["path"]) / "manifest.json").read_text())["settings"]
    assert (settings["encoder"], settings["max_length"]) == ("sentence-transformers", plan["max_length"])
    vectors = np.load(Path(encoded.json["path"]) / "vectors-00000.npy")
    assert llara("index").code == 0
    hits = llara("search", "The river rises", "-k", 5, "--json").json["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    queries = llara("encode", beir, "--model", model, *USED, "--as", "query", "--json").json
    scores = np.load(Path(queries["path"]) / "vectors-00000.npy") @ vectors.T
    run = tmp_path / "run.trec"
    assert llara("search", "--queries", beir / "queries.jsonl", "--output", run, "-k", 5).code == 0
    for line in run.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        assert float(score) == pytest.approx(scores[int(query[1:]), int(document[1:])], abs=1e-5)
    by_model = llara("evaluate", beir, "--model", model, *USED, "--json").json
    by_run = llara("evaluate", "--run", run, "--qrels", beir / "qrels" / "test.tsv", "--json").json
    assert by_model["datasets"]["small"] == pytest.approx(by_run["datasets"]["run"])


def test_a_model_changed_in_a_modules_folder_is_another(llara: Llara, beir: Path, tmp_path: Path) -> None:
    model = make_sentence_model(tmp_path / "bert")
    llara("encode", beir, "--model", model, *USED)
    llara("index")
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('"mean"', '"max"'))
    outcome = llara("search", "the sea")
    assert outcome.code == 2
    assert "has changed since" in outcome.error


def test_a_pickle_is_one_line(llara: Llara, beir: Path, tmp_path: Path) -> None:
    model = make_sentence_model(tmp_path / "bert")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    outcome = llara("encode", beir, "--model", model, *USED)
    assert outcome.code == 2
    assert "is a pickle" in outcome.error
    assert not (tmp_path / "ws/embeddings").exists() or not list((tmp_path / "ws/embeddings").iterdir())


def test_pooling_that_nobody_chose_is_said_once(llara: Llara, beir: Path, tiny_model: Path, model: Path) -> None:
    said = llara("encode", beir, "--model", tiny_model, *USED).err
    assert said.count("has no modules.json: sentence-transformers takes the mean of its hidden states") == 1
    assert "modules.json" not in llara("encode", beir, "--model", model, *USED).err


def test_a_model_of_the_library_takes_its_encoder_by_itself(
    llara: Llara, beir: Path, model: Path, tmp_path: Path
) -> None:
    told = "encoder: sentence-transformers ("
    encoded = llara("encode", beir, "--model", model)
    assert encoded.code == 0, encoded.err
    assert encoded.err.count(told) == 1
    (made,) = (tmp_path / "ws/embeddings").iterdir()
    settings = json.loads((made / "manifest.json").read_text())["settings"]
    assert settings["encoder"] == "sentence-transformers"
    assert llara("encode", beir, "--model", model, *USED).err.count("nothing to do") == 1
    measured = llara("evaluate", beir, "--model", model)
    assert measured.code == 0, measured.err
    assert measured.err.count(told) == 1
    by_hand = llara("evaluate", beir, "--model", model, *USED)
    assert "nothing to do" in by_hand.err
    assert told not in by_hand.err


def test_a_model_of_llaras_own_stays_with_torch(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert llara("encode", beir, "--model", tiny_model).code == 0
    (made,) = (tmp_path / "ws/embeddings").iterdir()
    assert json.loads((made / "manifest.json").read_text())["settings"]["encoder"] == "torch"
