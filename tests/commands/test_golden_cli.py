"""The golden numbers through the command line: losses, gradient norms and normalized embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import Llara, write_jsonl


@pytest.mark.parametrize(("name", "rows", "keep"), [("own", 6, False), ("own", 6, True), ("edge", 2, False)])
@pytest.mark.parametrize("limit", [128, 512])
def test_released_pretraining(llara: Llara, golden: Path, name: str, rows: int, limit: int, keep: bool) -> None:
    reference = json.loads((golden / "pretrain_reference.json").read_text())
    outcome = llara("pretrain", golden / "inputs" / f"pretrain_{name}.jsonl", "--model", golden / "model",
                    "--max-length", limit, "--batch-size", rows, "--max-steps", 1, "--json",
                    *(["--keep-stop-words"] if keep else []))  # fmt: skip
    (row,) = outcome.json["history"]
    wanted = reference[f"{name}_c{limit}{'_keepstop' if keep else ''}_all"]
    assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert row["lm"] == pytest.approx(wanted["ar_loss"], rel=1e-5)
    assert row["ebae"] == pytest.approx(wanted["bow_summarize_loss"], rel=1e-5)
    assert row["ebar"] == (wanted["bow_predict_loss"] and pytest.approx(wanted["bow_predict_loss"], rel=1e-5))
    assert row["grad_norm"] == pytest.approx(wanted["grad_norm"]["global"], rel=1e-4)
    assert (row["texts"], row["tokens"]) == (rows, wanted["n_ar_labels"])


@pytest.mark.parametrize("targets", ["all", "unique"])
def test_paper_pretraining(llara: Llara, golden: Path, targets: str) -> None:
    outcome = llara("pretrain", golden / "inputs" / "pretrain_own.jsonl", "--model", golden / "model",
                    "--recipe", "paper", "--targets", targets, "--max-length", 113,
                    "--batch-size", 6, "--max-steps", 1, "--json")  # fmt: skip
    (row,) = outcome.json["history"]
    wanted = json.loads((golden / "paper_v1.json").read_text())["own_fp32"]
    assert row["ebae"] == pytest.approx(wanted["loss_mean"][f"ebae_{targets}"], rel=1e-5)
    assert row["ebar"] == pytest.approx(wanted["loss_mean"][f"ebar_{targets}"], rel=1e-5)
    assert row["loss"] == pytest.approx(wanted[f"total_{targets}"], rel=1e-5)
    assert row["lm"] is None


def finetune(llara: Llara, golden: Path, folder: Path, *more: object) -> dict[str, Any]:
    """One step on the golden rows with their first three negatives, as the reference has them."""
    lines = (golden / "inputs" / "finetune_own.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    path = write_jsonl(folder / "train.jsonl", [row | {"neg": row["neg"][:3]} for row in rows])
    outcome = llara("finetune", path, "--model", golden / "model", "--backend", "full", "--negatives", 3,
                    "--batch-size", len(rows), "--max-steps", 1, "--json", *more)  # fmt: skip
    (row,) = outcome.json["history"]
    found: dict[str, Any] = row
    return found


@pytest.mark.parametrize("chunk", [(), ("--chunk-size", 2)])
@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_finetuning(llara: Llara, golden: Path, tmp_path: Path, temperature: float, chunk: tuple[object, ...]) -> None:
    wanted = json.loads((golden / "finetune_reference.json").read_text())[f"own_g4_norm_T{temperature}"]
    row = finetune(llara, golden, tmp_path, "--temperature", temperature, "--no-mask-false-negatives", *chunk)
    assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert row["grad_norm"] == pytest.approx(wanted["grad_norm"]["global"], rel=1e-4)


def test_finetuning_masks_copies_of_the_positive(llara: Llara, golden: Path, tmp_path: Path) -> None:
    wanted = json.loads((golden / "finetune_reference.json").read_text())["own_g4_norm_T0.01"]
    masked = wanted["loss_fp64_if_copies_of_own_positive_were_masked__NOT_reference"]
    assert finetune(llara, golden, tmp_path)["loss"] == pytest.approx(masked, rel=1e-5)


@pytest.mark.parametrize(("role", "overhead"), [("query", 20), ("passage", 21)])
@pytest.mark.parametrize("limit", [512, 32])
def test_encoding(llara: Llara, golden: Path, tmp_path: Path, role: str, overhead: int, limit: int) -> None:
    texts = json.loads((golden / "inputs" / "encode.json").read_text())["queries" if role == "query" else "passages"]
    path = write_jsonl(tmp_path / "texts.jsonl", [{"_id": str(i), "text": text} for i, text in enumerate(texts)])
    outcome = llara(
        "encode", path, "--model", golden / "model", "--as", role, "--max-length", limit + overhead, "--json"
    )
    vectors = np.load(Path(outcome.json["path"]) / "vectors-00000.npy")
    wanted = np.load(golden / "encode_reference.npz")[f"{role}_ml{limit}/normalized"]
    np.testing.assert_allclose(vectors, wanted, atol=2e-6, rtol=0)


def test_bm25_on_scifact(llara: Llara, data_root: Path, tmp_path: Path) -> None:
    result = llara("evaluate", data_root / "scifact", "--model", "bm25", "--json").json
    assert 0.66 <= result["datasets"]["scifact"]["nDCG@10"] <= 0.68
    run = tmp_path / "ws" / "results" / "scifact" / "bm25" / "scifact.trec"
    qrels = data_root / "scifact" / "qrels" / "test.tsv"
    scored = llara("evaluate", "--run", run, "--qrels", qrels, "--json").json["datasets"]["scifact"]
    import ir_measures

    graded = [line.split("\t") for line in qrels.read_text().splitlines()[1:]]
    judged = [ir_measures.Qrel(query, document, int(grade)) for query, document, grade in graded]
    metrics = {"nDCG@10": ir_measures.nDCG @ 10, "R@100": ir_measures.R @ 100, "MRR@10": ir_measures.RR @ 10}
    wanted = ir_measures.calc_aggregate(metrics.values(), judged, ir_measures.read_trec_run(str(run)))
    for name, metric in metrics.items():
        assert scored[name] == pytest.approx(wanted[metric], abs=1e-12)
        assert result["datasets"]["scifact"][name] == pytest.approx(wanted[metric], abs=1e-9)
    assert scored["queries"] == 300
