"""The whole flow through the command line, on a tiny model: what it prints, writes, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import Llara, tree, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llara_cli.commands.render import loss_lines
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import RECIPES
from llara_cli.retrieval.shards import Shards
from llara_cli.training.config import DEFAULT_MODEL

SMALL = ("--max-length", 60, "--batch-size", 4, "--learning-rate", 1e-3)


def pretrain(llara: Llara, corpus: Path, model: Path, *more: object) -> dict[str, Any]:
    """Two steps of pre-training."""
    outcome = llara("pretrain", corpus, "--model", model, "--max-steps", 2, *SMALL, "--json", *more)
    assert outcome.code == 0, outcome.err
    return outcome.json


@pytest.mark.parametrize("backend", ["full", "lora"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_pretrain(llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, recipe: str, backend: str) -> None:
    length = ("--max-length", 120) if recipe == "released" else ()
    result = pretrain(llara, corpus, tiny_model, "--recipe", recipe, "--backend", backend, *length)
    assert list(result) == ["name", "path", "steps", "texts", "tokens", "seconds", "tokens_per_second", "history"]
    assert result["name"] == f"tiny-{recipe}-wiki" + ("-lora" if backend == "lora" else "")
    assert result["steps"] == len(result["history"]) == 2
    row = result["history"][0]
    assert list(row) == ["step", "loss", "ebae", "ebar", "lm", "learning_rate", "grad_norm", "texts", "tokens"]
    total = row["ebae"] + row["ebar"] if recipe == "paper" else row["lm"] + (row["ebae"] + row["ebar"]) / 2
    assert row["loss"] == pytest.approx(total)
    assert (row["lm"] is None) == (recipe == "paper")
    folder = Path(result["path"])
    streamed = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert streamed == result["history"]
    saved = json.loads((folder / "llara.json").read_text())
    assert saved["recipe"]["name"] == recipe
    assert saved["dim"] == 32
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["optimiser.learning_rate"] == 1e-3
    assert not list(folder.glob("*checkpoint*"))
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    assert set(RECIPES[recipe].new_tokens) <= set(words.get_added_vocab())
    assert model.get_input_embeddings().num_embeddings == len(words)


def test_lora_trains_the_rows_of_new_tokens_and_merges_them(llara: Llara, corpus: Path, tiny_model: Path) -> None:
    settings = ("--recipe", "released", "--backend", "lora", "--max-length", 120)
    still = pretrain(llara, corpus, tiny_model, *settings, "--name", "still", "--learning-rate", 1e-12)
    moved = pretrain(llara, corpus, tiny_model, *settings, "--name", "moved", "--learning-rate", 1e-2)
    before, after = (
        load_file(Path(r["path"]) / "model.safetensors")["model.embed_tokens.weight"] for r in (still, moved)
    )
    changed = (before - after).abs().amax(dim=1) > 1e-4
    fresh = len(before) - 16
    assert changed[fresh:].all()
    assert not changed[:fresh].any()
    assert (Path(moved["path"]) / "adapter" / "adapter_model.safetensors").is_file()


def test_the_same_command_again_prints_the_same_and_works_nothing(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first = pretrain(llara, corpus, tiny_model)
    before = tree(tmp_path / "ws")
    assert pretrain(llara, corpus, tiny_model) == first
    assert tree(tmp_path / "ws") == before


def test_other_settings_under_the_same_name_are_refused(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pretrain(llara, corpus, tiny_model)
    before = tree(tmp_path / "ws" / "models")
    outcome = llara("pretrain", corpus, "--model", tiny_model, "--max-steps", 3, *SMALL)
    assert outcome.code == 2
    assert "max_steps was 2, now 3" in outcome.error
    assert "--restart" in outcome.error
    assert tree(tmp_path / "ws" / "models") == before


def test_restart_swaps_in_the_new_artifact(llara: Llara, corpus: Path, tiny_model: Path) -> None:
    pretrain(llara, corpus, tiny_model)
    outcome = llara("pretrain", corpus, "--model", tiny_model, "--max-steps", 3, *SMALL, "--restart", "--json")
    assert outcome.json["steps"] == 3
    folder = Path(outcome.json["path"])
    assert json.loads((folder / "manifest.json").read_text())["counts"]["steps"] == 3
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    llara: Llara, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    settings = (*SMALL, "--model", tiny_model, "--backend", backend, "--max-steps", 5, "--save-every", 2, "--json")
    whole = llara("pretrain", corpus, *settings, "--name", "whole").json
    from llara_cli.training import loop

    step = loop.Trainer.step

    def stop_at_four(self: Any, number: int, items: Any) -> Any:
        if number == 4:
            raise KeyboardInterrupt
        return step(self, number, items)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", stop_at_four)
        assert llara("pretrain", corpus, *settings, "--name", "parts").code == 130
    assert "unfinished: models/parts" in llara("status").out
    parts = llara("pretrain", corpus, *settings, "--name", "parts").json
    assert parts["history"] == whole["history"]
    mine, theirs = (load_file(Path(r["path"]) / "model.safetensors") for r in (parts, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_from_finetuning_to_an_answer(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path, backend: str
) -> None:
    tuned = llara("finetune", train, "--model", tiny_model, "--backend", backend, "--negatives", 2, "--epochs", 2,
                  "--batch-size", 3, "--query-length", 40, "--passage-length", 60, "--json")  # fmt: skip
    assert tuned.code == 0, tuned.err
    name = "tiny-paper-train-full-ft" if backend == "full" else "tiny-paper-train-ft"
    assert tuned.json["name"] == name
    assert tuned.json["steps"] == 4
    encoded = llara("encode", beir, "--json").json
    assert list(encoded) == ["name", "path", "count", "dim", "tokens", "seconds", "model"]
    assert (encoded["count"], encoded["dim"], encoded["model"]) == (5, 32, name)
    vectors = np.load(Path(encoded["path"]) / "vectors-00000.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (Path(encoded["path"]) / "ids.txt").read_text() == "d0\nd1\nd2\nd3\nd4\n"
    indexed = llara("index", "--json").json
    assert list(indexed) == ["name", "path", "backend", "count", "dim", "bytes", "seconds"]
    found = llara("search", "the sea", "-k", 3, "--json").json
    assert list(found) == ["index", "query", "hits"]
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert list(found["hits"][0]) == ["rank", "id", "score", "title", "text"]
    queries = llara("encode", beir, "--as", "query", "--json").json
    scores = np.load(Path(queries["path"]) / "vectors-00000.npy") @ vectors.T
    run = tmp_path / "run.trec"
    answer = llara("search", "--queries", beir / "queries.jsonl", "--output", run, "-k", 5, "--json").json
    assert (answer["count"], answer["output"]) == (5, str(run))
    for line in run.read_text().splitlines():
        query, q0, document, rank, score, tag = line.split()
        assert (q0, tag) == ("Q0", name)
        assert float(score) == pytest.approx(scores[int(query[1:]), int(document[1:])], abs=1e-5)
        assert int(rank) == 1 + (scores[int(query[1:])] > float(score) + 1e-6).sum()
    by_model = llara("evaluate", beir, "--json").json
    by_run = llara("evaluate", "--run", run, "--qrels", beir / "qrels" / "test.tsv", "--json").json
    assert by_model["datasets"]["small"] == pytest.approx(by_run["datasets"]["run"])
    refused = llara("evaluate", beir, "--attention", "fast", "--restart")
    assert (refused.code, "--attention must be" in refused.error) == (2, True)
    assert by_model["datasets"]["small"]["queries"] == 4
    assert (tmp_path / "ws/results/small" / name / "small.json").is_file()


def test_the_recipe_and_roles_saved_with_the_model_are_used(
    llara: Llara, beir: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    made = pretrain(llara, corpus, tiny_model, "--name", "adapted")
    saved = Path(made["path"]) / "llara.json"
    as_query = llara("encode", beir, "--as", "query", "--json", "--name", "plain").json
    recipe = json.loads(saved.read_text())
    recipe["recipe"]["roles"]["query"] = "self"
    copy = tmp_path / "symmetric"
    copy.mkdir()
    for file in Path(made["path"]).iterdir():
        if file.is_file() and file.name != "manifest.json":
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "llara.json").write_text(json.dumps(recipe))
    symmetric = llara("encode", beir, "--as", "query", "--model", copy, "--json").json
    passages = llara("encode", beir / "queries.jsonl", "--as", "passage", "--model", copy, "--json").json
    one, two, three = (np.load(Path(r["path"]) / "vectors-00000.npy") for r in (as_query, symmetric, passages))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(two, three, atol=1e-6)


def test_encoding_goes_on_at_the_shard_where_it_stopped(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("encode", beir, "--model", tiny_model, "--shard-size", 2, "--json")
    whole = llara(*command, "--name", "same", workspace=tmp_path / "other").json
    add, calls = Shards.add, []

    def die_at_third(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, *arguments)

    monkeypatch.setattr(Shards, "add", die_at_third)
    assert llara(*command, "--name", "same").code == 130
    assert llara(*command, "--name", "same").json["tokens"] == whole["tokens"]
    assert len(calls) == 4
    mine, theirs = (tree(Path(path)) for path in (tmp_path / "ws/embeddings/same", whole["path"]))
    assert {k: v for k, v in mine.items() if k != "run.json"} == {k: v for k, v in theirs.items() if k != "run.json"}


def test_empty_and_long_texts_are_no_mistake(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"_id": "a", "text": ""}, {"_id": "b", "text": "word " * 500}, {"_id": "c", "text": " "}]
    outcome = llara("encode", write_jsonl(tmp_path / "odd.jsonl", rows), "--model", tiny_model, "--json")
    assert outcome.code == 0
    assert "warning: 2 of 3 texts are empty" in outcome.err
    assert "1 of 3 texts are longer than 256 tokens" in outcome.err


@pytest.mark.parametrize("backend", ["exact", "faiss", "hnsw"])
def test_every_index_backend_answers(llara: Llara, beir: Path, tiny_model: Path, backend: str) -> None:
    llara("encode", beir, "--model", tiny_model)
    assert llara("index", "--backend", backend, "--json").json["backend"] == backend
    assert len(llara("search", "the sea", "-k", 9, "--json").json["hits"]) == 5
    if not torch.cuda.is_available():
        refused = llara("search", "the sea", "--device", "cuda")
        assert refused.code == 2
        assert "cuda" in refused.error or "CPU only" in refused.error


def test_the_model_that_is_taken_is_said(llara: Llara, corpus: Path, train: Path, tiny_model: Path) -> None:
    default = f"model: {DEFAULT_MODEL} (the default)"
    for command in (("pretrain", corpus), ("finetune", train)):
        assert default in llara(*command, "--dry-run").err  # which is not on this machine
        assert f"{DEFAULT_MODEL}]" in " ".join(llara(command[0], "--help").out.split())
    pretrain(llara, corpus, tiny_model, "--name", "adapted")
    tuned = llara("finetune", train, "--max-steps", 1, "--lora-rank", 2, "--negatives", 1, "--batch-size", 2)
    assert "model: adapted (the newest pretrained model)" in tuned.err


def test_losses_are_told_as_means_of_several_steps() -> None:
    history = [{"loss": float(step), "ebae": None, "ebar": 1.0, "lm": None} for step in range(1, 31)]
    assert loss_lines(history) == {
        "loss": "2.0000 -> 29.0000  (means of the first and last 3 steps)",
        "ebar": "1.0000 -> 1.0000  (means of the first and last 3 steps)",
    }
    assert loss_lines(history[:19])["loss"] == "1.0000 -> 19.0000  (first and last step)"
    assert loss_lines(history[:1])["loss"] == "1.0000"


def test_toml_sets_defaults_and_a_flag_wins(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "llara.toml").write_text(f'[encode]\nmodel = "{tiny_model}"\nmax-length = 40\n')
    llara("encode", beir, "--name", "a")
    llara("encode", beir, "--name", "b", "--max-length", 50)
    lengths = [
        json.loads((tmp_path / f"ws/embeddings/{n}/manifest.json").read_text())["settings"]["max_length"] for n in "ab"
    ]
    assert lengths == [40, 50]


def test_dry_runs_write_no_artifact(
    llara: Llara, corpus: Path, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plan = llara("pretrain", corpus, "--model", tiny_model, "--dry-run", "--json", *SMALL).json
    assert plan["trained_parameters"] > 0
    assert plan["steps"] == -(-plan["texts"] // 4)
    assert plan["peak_memory"] == sum(plan["memory"].values())
    tuned = llara("finetune", train, "--model", tiny_model, "--dry-run", "--json").json
    assert tuned["frozen_parameters"] == plan["trained_parameters"]
    encoding = llara("encode", beir, "--model", tiny_model, "--dry-run", "--json").json
    assert encoding["expected_seconds"] > 0
    assert not (tmp_path / "ws/models").exists()
    assert not (tmp_path / "ws/embeddings").exists()
    assert llara("encode", beir, "--model", tiny_model, "--json").json["tokens"] == encoding["tokens"]


def test_status_tells_artifacts_and_lineage(llara: Llara, beir: Path, corpus: Path, tiny_model: Path) -> None:
    pretrain(llara, corpus, tiny_model, "--name", "adapted")
    llara("encode", beir, "--name", "passages")
    llara("index", "--name", "library")
    found = {row["name"]: row for row in llara("status", "--json").json["artifacts"]}
    assert found["adapted"]["parents"] == {"model": "tiny"}
    assert found["library"]["parents"] == {"embeddings": "passages", "model": "adapted"}
    assert "library" in llara("status").out


def test_a_negated_flag_in_toml_says_no(llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "llara.toml").write_text("[pretrain]\nkeep-stop-words = true\ndrop_stop_words = false\n")
    made = pretrain(llara, corpus, tiny_model)
    assert json.loads((Path(made["path"]) / "manifest.json").read_text())["settings"]["drop_stop_words"] is False
    (tmp_path / "ws" / "llara.toml").write_text("[pretrain]\nkeep_stop_words = false\n")
    made = pretrain(llara, corpus, tiny_model, "--name", "dropped")
    assert json.loads((Path(made["path"]) / "manifest.json").read_text())["settings"]["drop_stop_words"] is True


def test_a_result_told_again_has_the_same_order_and_the_place_where_it_is_now(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first = llara("encode", beir, "--model", tiny_model, "--json").json
    (tmp_path / "ws").rename(tmp_path / "moved")
    again = llara("encode", beir, "--model", tiny_model, "--json", workspace=tmp_path / "moved").json
    assert list(again) == list(first)
    assert again == first | {"path": first["path"].replace("/ws/", "/moved/")}


def test_corpora_of_equal_bytes_and_other_format_are_not_confused(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    as_text = tmp_path / "wiki.txt"
    as_text.write_bytes(corpus.read_bytes())
    settings = ("--model", tiny_model, "--dry-run", "--json", *SMALL)
    assert llara("pretrain", corpus, *settings).json["tokens"] < llara("pretrain", as_text, *settings).json["tokens"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("backend", ["full", "lora"])
def test_half_precision_takes_every_step(
    llara: Llara, corpus: Path, tiny_model: Path, dtype: str, backend: str
) -> None:
    half = pretrain(llara, corpus, tiny_model, "--backend", backend, "--dtype", dtype, "--name", "half")
    full = pretrain(llara, corpus, tiny_model, "--backend", backend, "--name", "whole")
    for mine, theirs in zip(half["history"], full["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.2)
    assert "NaN" not in (Path(half["path"]) / "history.jsonl").read_text()


def test_what_an_evaluation_encodes_for_itself_is_no_default(llara: Llara, beir: Path, tiny_model: Path) -> None:
    llara("encode", beir, "--model", tiny_model, "--name", "mine-0123abcd", "--max-length", 50)
    assert llara("evaluate", beir, "--model", tiny_model).code == 0
    assert llara("index", "--json").json["name"] == "mine-0123abcd-exact"
