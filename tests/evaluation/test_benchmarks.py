"""Benchmarks on small folders: their sets, means and groups, identical ids, and what is skipped and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_sets import FORUMS, random_set, write_set
from program import Llara

from llara_cli.data.runs import read_qrels
from llara_cli.evaluation.benchmarks import BENCHMARKS
from llara_cli.evaluation.metrics import evaluate
from llara_cli.retrieval.bm25 import Bm25

pytest.importorskip("bm25s", reason="extra bm25 is not installed")
BM25 = ("--model", "bm25")
PRIVATE = ["bioasq", "signal1m", "trec-news", "robust04"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the data sets lie."""
    return tmp_path / "sets"


def beir_run(llara: Llara, root: Path, datasets: str = "all", *more: object) -> Any:
    """``evaluate beir`` with BM25."""
    return llara("evaluate", "beir", "--datasets", datasets, "--data-root", root, *BM25, *more)


def figures(folder: Path, metrics: tuple[str, ...] = ("nDCG@10",), split: str = "test") -> dict[str, float]:
    """What BM25 gets, put together here from its parts."""
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    asked = {row["_id"]: row["text"] for row in queries if row["_id"] in qrels}
    hits = Bm25([row["_id"] for row in corpus], [row["text"] for row in corpus]).search(asked.values(), 1000)
    return evaluate(qrels, dict(zip(asked, map(dict, hits), strict=True)), metrics).means


def test_beir_is_eighteen_sets_and_ms_marco() -> None:
    groups = list(dict.fromkeys(task.group for task in BENCHMARKS["beir"].tasks))
    assert len(groups) == 19
    assert groups[-1] == "msmarco"
    assert len({task.name for task in BENCHMARKS["beir"].tasks}) == 18 + 12
    assert [task.name for task in BENCHMARKS["beir"].tasks if task.holds_its_queries] == ["arguana", "quora"]
    assert [task.name for task in BENCHMARKS["beir"].tasks if not task.in_mean] == ["msmarco"]


def test_the_mean_is_over_zero_shot_sets_and_ms_marco_is_shown_on_dev(llara: Llara, root: Path) -> None:
    for seed, name in enumerate(("scifact", "nfcorpus")):
        random_set(root / name, seed)
    random_set(root / "msmarco", 9, split="dev")
    result = beir_run(llara, root, "all", "--json").json
    assert list(result) == ["benchmark", "model", "datasets", "mean"]
    assert list(result["datasets"]) == ["nfcorpus", "scifact", "msmarco"]
    for name, found in result["datasets"].items():
        split = "dev" if name == "msmarco" else "test"
        assert found["nDCG@10"] == pytest.approx(figures(root / name, split=split)["nDCG@10"])
        assert list(found) == ["nDCG@10", "R@100", "MRR@10", "queries"]
        assert found["queries"] == 6
    mean = np.mean([result["datasets"][name]["nDCG@10"] for name in ("scifact", "nfcorpus")])
    assert result["mean"] == {"nDCG@10": pytest.approx(mean), "datasets": 2}
    alone = beir_run(llara, root, "msmarco", "--json").json
    assert alone["mean"] == {"nDCG@10": result["datasets"]["msmarco"]["nDCG@10"], "datasets": 1}


def test_private_sets_are_named_as_skipped_and_taken_where_they_lie(llara: Llara, root: Path) -> None:
    random_set(root / "scifact", 0)
    skipped = beir_run(llara, root)
    assert skipped.code == 0
    assert f"no public download, skipped: {', '.join(PRIVATE)}" in skipped.err
    refused = beir_run(llara, root, "scifact,robust04")
    assert refused.code == 2
    assert "robust04: no public download" in refused.error
    assert "--data-root" in refused.error
    for name in PRIVATE:
        random_set(root / name, 3)
    taken = beir_run(llara, root, "all", "--json")
    assert "no public download" not in taken.err
    assert set(taken.json["datasets"]) == {"scifact", *PRIVATE}
    assert taken.json["mean"]["datasets"] == 5


def test_sets_that_could_be_downloaded_are_named_with_their_size_and_the_flag(llara: Llara, root: Path) -> None:
    pytest.importorskip("ir_datasets", reason="extra eval is not installed")
    random_set(root / "scifact", 0)
    outcome = beir_run(llara, root)
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("not found, skipped: ")]
    assert "trec-covid, nfcorpus, nq" in line
    assert "--yes downloads them" in line
    assert "GB" in line


def test_cqadupstack_is_the_mean_of_its_forums_and_each_is_kept(llara: Llara, root: Path, tmp_path: Path) -> None:
    for seed, forum in enumerate(FORUMS):
        random_set(root / "cqadupstack" / forum, seed, queries=4 + seed)
    random_set(root / "scifact", 99)
    result = beir_run(llara, root, "cqadupstack,scifact", "--json").json
    group = result["datasets"]["cqadupstack"]
    expected = {forum: figures(root / "cqadupstack" / forum)["nDCG@10"] for forum in FORUMS}
    assert {forum: part["nDCG@10"] for forum, part in group["forums"].items()} == pytest.approx(expected)
    # of the forums, not of all their queries
    assert group["nDCG@10"] == pytest.approx(np.mean(list(expected.values())))
    weighted = sum(part["nDCG@10"] * part["queries"] for part in group["forums"].values()) / group["queries"]
    assert abs(group["nDCG@10"] - weighted) > 1e-3
    assert group["queries"] == sum(2 + seed for seed in range(12))
    mean = (group["nDCG@10"] + result["datasets"]["scifact"]["nDCG@10"]) / 2
    assert result["mean"] == {"nDCG@10": pytest.approx(mean), "datasets": 2}
    results = tmp_path / "ws/results/beir/bm25"
    for forum in FORUMS:
        kept = json.loads((results / "cqadupstack" / f"{forum}.json").read_text())
        assert kept["metrics"]["nDCG@10"] == pytest.approx(expected[forum])
        assert (results / "cqadupstack" / f"{forum}.trec").is_file()
    assert json.loads((results / "cqadupstack.json").read_text())["nDCG@10"] == group["nDCG@10"]


def test_missing_forums_are_named_and_a_partial_mean_does_not_count(llara: Llara, root: Path) -> None:
    for seed, forum in enumerate(FORUMS[:9]):
        random_set(root / "cqadupstack" / forum, seed)
    random_set(root / "scifact", 99)
    outcome = beir_run(llara, root, "all", "--json")
    assert outcome.code == 0, outcome.err
    missing = ["unix", "webmasters", "wordpress"]
    assert f"missing: {', '.join(f'cqadupstack/{forum}' for forum in missing)}" in outcome.err
    group = outcome.json["datasets"]["cqadupstack"]
    assert group["missing_forums"] == missing
    assert len(group["forums"]) == 9
    assert outcome.json["mean"] == {"nDCG@10": outcome.json["datasets"]["scifact"]["nDCG@10"], "datasets": 1}
    shown = beir_run(llara, root, "cqadupstack").out
    assert "cqadupstack (9 of 12)" in shown
    assert "missing: unix, webmasters, wordpress" in shown
    alone = beir_run(llara, root, "cqadupstack", "--json").json
    assert alone["mean"] == {"nDCG@10": None, "datasets": 0}


def test_one_forum_can_be_asked_for(llara: Llara, root: Path) -> None:
    random_set(root / "cqadupstack" / "gis", 1)
    result = beir_run(llara, root, "cqadupstack/gis", "--json").json
    assert list(result["datasets"]["cqadupstack"]["forums"]) == ["gis"]
    assert len(result["datasets"]["cqadupstack"]["missing_forums"]) == 11


SAME_IDS = {"1": "sea boat", "2": "sea boat harbour", "3": "rain wind"}
"""Document 1 is query 1, word for word."""


@pytest.mark.parametrize(("name", "dropped"), [("arguana", True), ("quora", True), ("scifact", False)])
def test_identical_ids_are_dropped_by_the_sets_name(llara: Llara, root: Path, name: str, dropped: bool) -> None:
    write_set(root / name, SAME_IDS, {"1": "sea boat"}, [("1", "2", 1)])
    result = beir_run(llara, root, name, "--json").json["datasets"][name]
    assert result["MRR@10"] == (1.0 if dropped else 0.5)
    forced = beir_run(llara, root, name, "--json", "--drop-identical-ids").json["datasets"][name]
    assert forced["MRR@10"] == 1.0


@pytest.mark.parametrize(("name", "dropped"), [("arguana", True), ("quora", True), ("cranfield", False)])
def test_the_same_rule_holds_for_one_folder(llara: Llara, root: Path, name: str, dropped: bool) -> None:
    """In Cranfield query 1 and document 1 have nothing to do with each other."""
    folder = write_set(root / name, SAME_IDS, {"1": "sea boat"}, [("1", "1", 1)])
    result = llara("evaluate", folder, *BM25, "--json").json["datasets"][name]
    assert result["MRR@10"] == (0.0 if dropped else 1.0)


def test_one_more_is_fetched_for_the_dropped(llara: Llara, root: Path, tmp_path: Path) -> None:
    write_set(root / "quora", SAME_IDS, {"1": "sea boat"}, [("1", "2", 1)])
    assert beir_run(llara, root, "quora", "-k", 1, "--json").json["datasets"]["quora"]["MRR@10"] == 1.0
    run = (tmp_path / "ws/results/beir/bm25/quora.trec").read_text()
    assert [line.split()[2] for line in run.splitlines()] == ["2"]


def test_a_dense_model_follows_the_same_rule(llara: Llara, root: Path, tiny_model: Path) -> None:
    texts = {f"q{n}": text for n, text in enumerate(("The sea is far.", "Bees dance.", "Rain and wind."))}
    for name in ("arguana", "scifact"):
        write_set(root / name, texts, texts, [(query, query, 1) for query in texts])
    model = ("--model", tiny_model, "--json")
    result = llara("evaluate", "beir", "--datasets", "arguana,scifact", "--data-root", root, *model).json["datasets"]
    assert result["arguana"]["R@100"] == 0.0
    assert result["scifact"]["R@100"] == 1.0


def test_graded_judgments_count_by_their_grade(llara: Llara, root: Path) -> None:
    """NFCorpus has grades up to 2."""
    write_set(root / "nfcorpus", {"a": "sea", "b": "sea sea boat"}, {"q": "sea boat"}, [("q", "a", 2), ("q", "b", 1)])
    result = beir_run(llara, root, "nfcorpus", "--json", "--metrics", "nDCG@10,R(rel=2)@1,R@1").json
    first, second = 1.0, 1 / np.log2(3)
    expected = (1 * first + 2 * second) / (2 * first + 1 * second)
    assert result["datasets"]["nfcorpus"]["nDCG@10"] == pytest.approx(expected, abs=1e-6)


def test_ms_marco_has_its_own_metrics(llara: Llara, root: Path) -> None:
    random_set(root / "msmarco-passage", 0, split="dev")
    random_set(root / "msmarco-document", 1, split="dev")
    call = ("evaluate", "msmarco", "--data-root", root, *BM25)
    result = llara(*call, "--json").json
    assert {name: list(found) for name, found in result["datasets"].items()} == {
        "msmarco-passage": ["MRR@10", "R@1000", "queries"],
        "msmarco-document": ["MRR@100", "R@100", "queries"],
    }
    assert result["mean"] == {"MRR@10": None, "datasets": 0}
    one = llara(*call, "--datasets", "msmarco-document", "--json").json
    assert list(one["datasets"]) == ["msmarco-document"]
    assert one["mean"] == {"MRR@100": result["datasets"]["msmarco-document"]["MRR@100"], "datasets": 1}
    shown = llara(*call).out
    assert "LLaRA v1" in shown.replace("\n", " ")
    assert "43.10" in shown
    assert "47.50" in shown


def test_beirs_copy_of_ms_marco_serves_too(llara: Llara, root: Path) -> None:
    random_set(root / "msmarco", 0, split="dev")
    random_set(root / "other", 1)
    shutil.copy(root / "other/qrels/test.tsv", root / "msmarco/qrels/test.tsv")
    passages = llara("evaluate", "msmarco", "--datasets", "msmarco-passage", "--data-root", root, *BM25, "--json").json
    assert passages["datasets"]["msmarco-passage"]["MRR@10"] == figures(root / "msmarco", ("MRR@10",), "dev")["MRR@10"]
    deep = llara("evaluate", "trec-dl", "--datasets", "dl19-passage", "--data-root", root, *BM25, "--json").json
    assert deep["datasets"]["dl19-passage"]["nDCG@10"] == figures(root / "msmarco", split="test")["nDCG@10"]


def test_trec_dl_has_four_sets_over_two_corpora(llara: Llara, root: Path) -> None:
    for seed, name in enumerate(("msmarco-passage", "msmarco-document")):
        folder = random_set(root / name, seed, split="dl19")
        shutil.copy(folder / "qrels/dl19.tsv", folder / "qrels/dl20.tsv")
    result = llara("evaluate", "trec-dl", "--data-root", root, *BM25, "--json").json
    passage, document = ["nDCG@10", "AP(rel=2)", "R(rel=2)@1000", "queries"], ["nDCG@10", "AP@100", "R@100", "queries"]
    assert {name: list(found) for name, found in result["datasets"].items()} == {
        "dl19-passage": passage, "dl19-document": document, "dl20-passage": passage, "dl20-document": document,
    }  # fmt: skip
    assert result["mean"]["datasets"] == 4


def test_names_and_folders_that_are_not_there(llara: Llara, root: Path) -> None:
    random_set(root / "scifact", 0)
    assert "scifcat: beir has trec-covid, nfcorpus" in beir_run(llara, root, "scifcat").error
    assert "--datasets is empty" in beir_run(llara, root, " , ").error
    assert "no such folder" in beir_run(llara, root / "nowhere").error
    assert "msmarco-passage, msmarco-document" in llara("evaluate", "msmarco", "--datasets", "dl19", *BM25).error
    shutil.rmtree(root / "scifact" / "qrels")
    assert "scifact is not a BEIR folder" in beir_run(llara, root, "scifact").error
    outcome = beir_run(llara, root)
    assert outcome.code == 2
    assert "not one folder in BEIR layout, skipped: scifact" in outcome.err
    assert "none of beir's data sets was found" in outcome.error


def test_a_split_that_only_some_have(llara: Llara, root: Path) -> None:
    random_set(root / "scifact", 0)
    random_set(root / "fiqa", 1, split="dev")
    outcome = beir_run(llara, root, "all", "--split", "dev", "--json")
    assert list(outcome.json["datasets"]) == ["fiqa"]
    assert "no split 'dev', skipped: scifact" in outcome.err
    assert "has no split 'dev'" in beir_run(llara, root, "scifact", "--split", "dev").error


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{broken", "corpus.jsonl:31: not JSON"),
        ("queries.jsonl", '{"_id": "q0", "text": "again"}', "queries.jsonl:9: "),
        ("qrels/test.tsv", "q0\td0\tgood", "test.tsv:38: the score must be a whole number, not 'good'"),
        ("qrels/test.tsv", "q0\td0", "test.tsv:38: not a judgment"),
    ],
)
def test_bad_lines_are_told_with_their_place(
    llara: Llara, root: Path, tmp_path: Path, file: str, line: str, message: str
) -> None:
    folder = random_set(root / "scifact", 0)
    with (folder / file).open("a") as stream:
        stream.write(line + "\n")
    outcome = beir_run(llara, root, "scifact")
    assert outcome.code == 2
    assert message in outcome.error
    assert not list((tmp_path / "ws/results").rglob("scifact.*"))


def test_judged_queries_that_the_collection_lacks_count_nothing_and_are_told(llara: Llara, root: Path) -> None:
    folder = write_set(root / "scifact", {"a": "sea"}, {"q": "sea"}, [("q", "a", 1), ("lost", "a", 1)])
    outcome = beir_run(llara, root, "scifact", "--json")
    assert "1 judged queries are not in" in outcome.err
    assert outcome.json["datasets"]["scifact"] == {"nDCG@10": 0.5, "R@100": 0.5, "MRR@10": 0.5, "queries": 2}
    (folder / "queries.jsonl").write_text('{"_id": "other", "text": "sea"}\n')
    assert "none of its queries has judgments" in beir_run(llara, root, "scifact").error


@pytest.mark.parametrize("words", [True, False])
def test_judged_documents_that_the_corpus_lacks_are_told(
    llara: Llara, root: Path, tiny_model: Path, words: bool
) -> None:
    qrels = [("q", "a", 1), *(("q", f"gone{n}", n % 2) for n in range(4)), ("p", "gone1", 1), ("p", "b", 1)]
    folder = write_set(root / "small", {"a": "sea", "b": "boat"}, {"q": "sea", "p": "boat"}, qrels)
    call = ("evaluate", folder, "--model", "bm25" if words else tiny_model, "--json", "--metrics", "R@100")
    outcome = llara(*call)
    assert f"4 judged documents are not in {folder / 'corpus.jsonl'}: gone0, gone1, gone2, ...;" in outcome.err
    assert outcome.json["datasets"]["small"]["R@100"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    (folder / "qrels/test.tsv").write_text("q\ta\t1\np\tb\t1\n")
    assert "judged documents" not in llara(*call).err
