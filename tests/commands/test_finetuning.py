"""``llara finetune``: several sets, roles, widths, a teacher's scores, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import Llara, write_jsonl
from safetensors.torch import load_file
from tiny import TEXTS, make_model

from llara_cli.training.history import History

FLAGS = ("--backend", "full", "--batch-size", 2, "--negatives", 1, "--name", "m", "--json")


def saved_recipe(workspace: Path) -> dict[str, Any]:
    """Of the model called m."""
    found: dict[str, Any] = json.loads((workspace / "models/m/llara.json").read_text())["recipe"]
    return found


def test_sets_with_weights(llara: Llara, train: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"query": t[:9], "pos": [t]} for t in TEXTS[:4]])
    done = llara("finetune", f"{train}:2", f"{other}:0.5", "--model", tiny_model, *FLAGS).json
    assert done["steps"] == 5 + 1  # 10 rows of the first set, 2 of the second, in batches of 2
    again = llara("finetune", f"{train}:3", f"{other}:0.5", "--model", tiny_model, *FLAGS)
    assert again.code == 2
    assert "set_weights" in again.error


def test_attention_over_segments_gives_the_same_losses(
    llara: Llara, train: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The model is the same artifact: it is a way to compute, not what is computed."""
    run = ("finetune", train, "--model", tiny_model, *FLAGS)
    dense = llara(*run, workspace=tmp_path / "dense").json
    segments = llara(*run, "--attention", "varlen").json
    losses = [[row["loss"] for row in found["history"]] for found in (dense, segments)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    again = llara(*run, "--attention", "dense").json
    assert again["history"] == segments["history"]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "1e9"])
def test_a_weight_that_is_none(llara: Llara, train: Path, tiny_model: Path, weight: str) -> None:
    done = llara("finetune", f"{train}:{weight}", "--model", tiny_model, *FLAGS)
    assert done.code == 2
    assert "weight must lie between" in done.error


def test_a_file_with_a_colon_in_its_name_is_a_file(llara: Llara, train: Path, tiny_model: Path) -> None:
    odd = train.rename(train.with_name("rows:2"))
    done = llara("finetune", odd, "--model", tiny_model, *FLAGS)
    assert "unknown kind of file" in done.error
    missing = llara("finetune", train.with_name("no.jsonl:x"), "--model", tiny_model, *FLAGS)
    assert missing.code == 2
    assert "no.jsonl:x" in missing.error


def test_symmetric_roles_are_saved_and_used(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    llara("finetune", train, "--model", tiny_model, *FLAGS, "--symmetric")
    assert saved_recipe(tmp_path / "ws")["roles"] == {"query": "self", "passage": "self"}
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(TEXTS)])
    for role in ("query", "passage"):
        assert llara("encode", texts, "--as", role, "--model", "m", "--name", role).code == 0
    vectors = [np.load(tmp_path / f"ws/embeddings/{role}/vectors-00000.npy") for role in ("query", "passage")]
    assert np.array_equal(*vectors)
    # the next round keeps them, unless told otherwise
    llara("finetune", train, "--model", "m", *FLAGS[:-3], "--name", "n", "--max-steps", 1)
    assert json.loads((tmp_path / "ws/models/n/llara.json").read_text())["recipe"]["roles"]["query"] == "self"
    llara("finetune", train, "--model", "m", *FLAGS[:-3], "--name", "o", "--max-steps", 1, "--asymmetric")
    assert json.loads((tmp_path / "ws/models/o/llara.json").read_text())["recipe"]["roles"]["query"] == "next"


def test_widths_are_trained_saved_and_cut_to(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    llara("finetune", train, "--model", tiny_model, *FLAGS, "--dims", "8,16")
    assert saved_recipe(tmp_path / "ws")["dims"] == [32, 16, 8]
    whole = llara("encode", beir, "--model", "m", "--name", "whole", "--json")
    done = llara("encode", beir, "--model", "m", "--name", "cut", "--dim", 8, "--json")
    assert (whole.json["dim"], done.json["dim"]) == (32, 8)
    assert "trained for" not in done.err
    vectors = [np.load(tmp_path / f"ws/embeddings/{name}/vectors-00000.npy") for name in ("whole", "cut")]
    wanted = vectors[0][:, :8] / np.linalg.norm(vectors[0][:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[1], wanted, rtol=1e-6)
    assert llara("index", "cut", "--name", "i").code == 0
    hits = llara("search", TEXTS[0], "--index", "i", "--json").json["hits"]
    assert len(hits) == len(TEXTS)
    assert all(abs(hit["score"]) <= 1.0001 for hit in hits)
    evaluated = llara("evaluate", beir, "--model", "m", "--dim", 8, "--json")
    assert evaluated.code == 0, evaluated.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--dims", "64"), "above the model's width of 32"),
        (("--dims", "8,x"), "whole numbers"),
        (("--dims", "0"), "must be positive"),
        (("--distillation", "1.5"), "between 0 and 1"),
        (("--distillation", "0.5"), "train.jsonl:1: no pos_scores and neg_scores"),
        (("--mask-margin", "nan"), "finite"),
        (("--temperature", "nan"), "must be positive, not nan"),
        (("--temperature", "inf"), "must be positive and finite"),
        (("--learning-rate", "nan"), "must be positive, not nan"),
        (("--max-grad-norm", "nan"), "must be positive, not nan"),
        (("--weight-decay", "inf"), "finite"),
        (("--epochs", "inf"), "must be positive and finite"),
        (("--epochs", "nan"), "must be positive, not nan"),
    ],
)
def test_what_cannot_be_is_refused(
    llara: Llara, train: Path, tiny_model: Path, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    done = llara("finetune", train, "--model", tiny_model, *FLAGS, *flags)
    assert done.code == 2
    assert told in done.error
    assert not (tmp_path / "ws/models/m").exists()


def test_a_run_that_would_learn_nothing_is_refused(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    """With nothing beside the positive every loss is 0."""
    flags = ("--model", tiny_model, "--backend", "full", "--max-steps", 1, "--name", "m")
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"query": text[:9], "pos": [text]} for text in TEXTS])
    for more in (("--no-in-batch-negatives",), ("--batch-size", 1)):
        done = llara("finetune", bare, *flags, *more)
        assert (done.code, "to contrast with" in done.error) == (2, True)
        assert more[0] in done.error
        assert not (tmp_path / "ws/models").exists()
    some = write_jsonl(tmp_path / "some.jsonl", [{"query": text[:9], "pos": [text], "neg": ["x"]} for text in TEXTS])
    some.write_text(some.read_text() + bare.read_text())
    done = llara("finetune", some, *flags, "--no-in-batch-negatives")
    assert done.code == 0
    assert "5 of 10 rows have no hard negatives" in done.err
    assert llara("finetune", bare, *flags[:-1], "n", "--batch-size", 2).code == 0


def test_a_run_in_which_all_passages_are_copies_of_positives_is_refused(
    llara: Llara, tiny_model: Path, tmp_path: Path
) -> None:
    """The other rows' passages are masked as false negatives, so nothing is left in any batch."""
    rows = [{"query": f"q{n}", "pos": ["the same"], "neg": ["the same "]} for n in range(6)]
    train = write_jsonl(tmp_path / "rows.jsonl", rows)
    for more in ((), ("--dry-run",)):
        done = llara("finetune", train, "--model", tiny_model, *FLAGS, *more)
        assert done.code == 2
        assert "no batch has anything to contrast" in done.error
        assert not (tmp_path / "ws/models").exists()
    done = llara("finetune", train, "--model", tiny_model, *FLAGS, "--no-mask-false-negatives")
    assert done.code == 0
    assert all(row["loss"] > 0 for row in done.json["history"])


def test_a_batch_that_teaches_nothing_is_told_once(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    """Three rows in batches of two: in each epoch one is left over, with nothing beside its positive."""
    rows = [{"query": text[:9], "pos": [text]} for text in TEXTS[:3]]
    train = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = llara("finetune", train, "--model", tiny_model, *FLAGS, "--epochs", 2)
    assert done.code == 0
    assert [row["loss"] == 0 for row in done.json["history"]] == [False, True, False, True]
    assert done.err.count("warning: a batch of 1 queries has nothing to learn from") == 1
    whole = llara("finetune", train, "--model", tiny_model, *FLAGS, "--restart", "--batch-size", 3)
    assert "has nothing to learn from" not in whole.err


def test_a_margin_that_masks_all_is_told(llara: Llara, tiny_model: Path, train: Path) -> None:
    done = llara("finetune", train, "--model", tiny_model, *FLAGS, "--mask-margin", "-3")
    assert all(row["loss"] == 0 for row in done.json["history"])
    assert done.err.count("warning: a batch of 2 queries has nothing to learn from") == 1


def test_empty_texts_are_told(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"query": "", "pos": [TEXTS[0]], "neg": [" \t"]}, {"query": "q", "pos": [TEXTS[1]], "neg": [""]}]
    train = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = llara("finetune", train, "--model", tiny_model, *FLAGS)
    assert done.code == 0
    assert "3 of 6 texts are empty" in done.err


def test_widths_are_kept_in_later_runs(llara: Llara, train: Path, tiny_model: Path, tmp_path: Path) -> None:
    llara("finetune", train, "--model", tiny_model, *FLAGS, "--dims", "8")
    first = {}
    for name, more in (("kept", ()), ("said", ("--dims", "8")), ("whole", ("--dims", "32"))):
        flags = ("--model", "m", *FLAGS[:-3], "--name", name, "--max-steps", 1, "--json", *more)
        first[name] = llara("finetune", train, *flags).json["history"][0]["loss"]
    assert first["kept"] == first["said"] != first["whole"]
    dims = [json.loads((tmp_path / f"ws/models/{name}/llara.json").read_text())["recipe"]["dims"] for name in first]
    assert dims == [[32, 8], [32, 8], [32]]


def test_more_dimensions_than_the_model_has(llara: Llara, tiny_model: Path, beir: Path) -> None:
    assert "above the model's width" in llara("encode", beir, "--model", tiny_model, "--dim", 33).error
    warned = llara("encode", beir, "--model", tiny_model, "--dim", 16)
    assert warned.code == 0
    assert "was trained for its full width only" in warned.err


def test_a_teachers_scores_are_followed(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    """The teacher likes the negative better: so does the student in the end."""
    rows = [
        {"query": "where?", "pos": [TEXTS[0]], "neg": [TEXTS[1]], "pos_scores": [0.0], "neg_scores": [6.0]}
        for _ in "ab"
    ]
    train = write_jsonl(tmp_path / "scored.jsonl", rows)
    flags = ("--model", tiny_model, *FLAGS, "--max-steps", 30, "--learning-rate", 3e-3, "--temperature", 0.1)
    history = llara("finetune", train, *flags, "--distillation", 1).json["history"]
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]
    texts = write_jsonl(tmp_path / "c.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(TEXTS[:2])])
    llara("encode", texts, "--model", "m", "--name", "e")
    llara("index", "e", "--name", "i")
    assert llara("search", "where?", "--index", "i", "--json").json["hits"][0]["id"] == "1"


def test_the_best_weights_on_a_dev_set_are_kept(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    """Rates so high that the model gets worse: the saved one is that of the best look, not of the last."""
    flags = ("--model", tiny_model, *FLAGS, "--dev", beir, "--dev-every", 1, "--learning-rate", 0.05, "--epochs", 4)
    done = llara("finetune", train, *flags)
    assert done.code == 0, done.err
    dev = done.json["dev"]
    assert [row["step"] for row in dev["scores"]] == list(range(1, 13))
    assert "has no split dev" in done.err
    best = max(dev["scores"], key=lambda row: row["nDCG@10"])
    assert (dev["best"], dev["step"]) == (best["nDCG@10"], best["step"])
    lengths = ("--max-length", 160, "--query-length", 64)
    found = llara("evaluate", beir, "--model", "m", *lengths, "--json").json["datasets"]["small"]
    assert found["nDCG@10"] == pytest.approx(dev["best"], abs=1e-9)
    assert not (tmp_path / "ws/models/m/best").exists()
    assert llara("status", "--verify").code == 0
    scores = [row["nDCG@10"] for row in dev["scores"]]
    worse = next(number for number in range(1, len(scores)) if scores[number] <= max(scores[:number]))
    stopped = llara("finetune", train, *flags, "--patience", 1, "--restart").json
    assert stopped["steps"] == worse + 1 < done.json["steps"]


def test_what_a_dev_set_lacks_is_told_and_a_broken_one_refused_before_the_run(
    llara: Llara, tiny_model: Path, train: Path, beir: Path, tmp_path: Path
) -> None:
    with (beir / "qrels/test.tsv").open("a") as file:
        file.write("q0\tgone\t1\nlost\td0\t1\n")
    command = ("finetune", train, "--model", tiny_model, *FLAGS, "--dev", beir, "--max-steps", 1)
    done = llara(*command)
    assert done.code == 0
    assert "warning: small: 1 judged queries are not in" in done.err
    assert f"warning: small: 1 judged documents are not in {beir / 'corpus.jsonl'}: gone;" in done.err
    with (beir / "corpus.jsonl").open("a") as file:
        file.write("{broken\n")
    done = llara(*command, "--restart")
    assert done.code == 2
    assert "corpus.jsonl:6: not JSON" in done.error
    assert (tmp_path / "ws/models/m/manifest.json").exists()


def test_a_stopped_run_with_a_dev_set_goes_on(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", tiny_model, *FLAGS, "--dev", beir, "--dev-every", 1, "--epochs", 2, "--save-every", 2)
    whole = llara("finetune", train, *flags, workspace=tmp_path / "whole").json
    write, calls = History.add, []

    def stop(self: Any, row: dict[str, Any]) -> str:
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(self, row)

    monkeypatch.setattr(History, "add", stop)
    assert llara("finetune", train, *flags).code == 130
    monkeypatch.undo()
    again = llara("finetune", train, *flags).json
    assert again["dev"] == whole["dev"]
    weights = [(tmp_path / run / "models/m/model.safetensors").read_bytes() for run in ("whole", "ws")]
    assert weights[0] == weights[1]


def test_rounds_are_artifacts_and_are_not_run_again(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, *FLAGS, "--rounds", 2, "--corpus", beir, "--max-steps", 2)
    done = llara("finetune", train, *flags)
    assert done.code == 0, done.err
    assert done.json["name"] == "m"
    there = {f"{row['kind']}/{row['name']}" for row in llara("status", "--json").json["artifacts"]}
    assert {"models/m-round1", "models/m", "mined/m-round1-mined"} <= there
    assert sum(name.startswith(("embeddings/", "indexes/")) for name in there) == 2
    mined = [json.loads(line) for line in (tmp_path / "ws/mined/m-round1-mined/rows.jsonl").read_text().splitlines()]
    assert all(item["neg_ids"] for item in mined)
    manifest = json.loads((tmp_path / "ws/models/m/manifest.json").read_text())
    assert manifest["inputs"][0]["name"] == "rows.jsonl"
    again = llara("finetune", train, *flags)
    assert again.json["history"] == done.json["history"]
    assert again.err.count("nothing to do") >= 3
    assert "needs a --corpus" in llara("finetune", train, *FLAGS, "--rounds", 2).error
    assert "--corpus needs --rounds" in llara("finetune", train, *FLAGS, "--corpus", beir).error
    assert "need --dev" in llara("finetune", train, *FLAGS, "--patience", 2).error


def test_rounds_tell_what_cannot_be_before_the_first(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    twice = write_jsonl(tmp_path / "twice.jsonl", [{"_id": "1", "text": "a"}, {"_id": "1", "text": "b"}])
    flags = ("--model", tiny_model, "--backend", "full", "--name", "m", "--rounds", 2, "--max-steps", 1)
    for more, told in (
        (("--corpus", twice), "twice.jsonl:2: the id '1' is not unique"),
        (("--corpus", beir, "--distillation", 0.5), "needs a teacher's scores"),
        (("--corpus", beir, "--negatives", 0), "uses none"),
    ):
        done = llara("finetune", train, *flags, *more)
        assert (done.code, told in done.error) == (2, True), done.err
        assert not list((tmp_path / "ws").glob("*/*"))
    done = llara("finetune", train, *flags, "--corpus", beir, "--negatives", 201)
    assert done.code == 0, done.err


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("qwen", True)])
def test_a_projection_of_its_own_is_no_part_of_the_training(
    llara: Llara, train: Path, tmp_path: Path, architecture: str, tied: bool
) -> None:
    model = make_model(tmp_path / architecture, architecture)
    plan = llara("finetune", train, "--model", model, *FLAGS, "--dry-run").json
    weights = load_file(model / "model.safetensors")
    head = 0 if tied else weights["lm_head.weight"].numel()
    assert plan["trained_parameters"] == sum(weight.numel() for weight in weights.values()) - head
    done = llara("finetune", train, "--model", model, *FLAGS)
    assert done.code == 0, done.err
    assert [plan[name] for name in ("texts", "tokens", "steps")] == [15, done.json["tokens"], done.json["steps"]]
    assert done.json["texts"] == 15
    trained = load_file(tmp_path / "ws/models/m/model.safetensors")
    assert not trained["model.embed_tokens.weight"].equal(weights["model.embed_tokens.weight"])
    if not tied:
        assert trained["lm_head.weight"].equal(weights["lm_head.weight"])


def test_the_layers_of_an_adapter_are_named_in_order(
    llara: Llara, train: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """peft has a set of them, which each process writes in another order: equal runs had other manifests."""
    flags = ("--model", tiny_model, "--lora-rank", 2, "--max-steps", 1, "--name", "m")
    assert llara("finetune", train, *flags).code == 0
    names = json.loads((tmp_path / "ws/models/m/adapter/adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14
    assert names == sorted(names)
