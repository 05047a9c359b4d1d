"""``llara mine``: what becomes a negative, the formats, resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from program import Llara, tree, write_jsonl
from tiny import TEXTS

from llara_cli.data.training_rows import TrainingRow, read_training_rows
from llara_cli.pipelines import mine
from llara_cli.retrieval import hard_negatives


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Thirty documents; the first five are the texts that questions are about."""
    texts = [
        *TEXTS,
        *(f"{a} {b}" for n, a in enumerate(TEXTS) for b in TEXTS[:n] + TEXTS[n + 1 :]),
        *(t.upper() for t in TEXTS),
    ]
    return write_jsonl(tmp_path / "docs.jsonl", [{"_id": f"d{n}", "title": "", "text": t} for n, t in enumerate(texts)])


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(**changes: Any) -> TrainingRow:
    """A question with one positive."""
    fields = {"query": "q", "positives": ("p",), "negatives": (), "positive_ids": ("7",), "negative_ids": ()}
    return TrainingRow(**(fields | changes))


class Listed:
    """A finder whose document n has the text tn."""

    name = "listed"
    parents, searched = {"index": "x"}, {"index": "i"}

    def __init__(self, **texts: str) -> None:
        self._texts = texts

    def document(self, place: int) -> hard_negatives.Document:
        """Under the id n."""
        return hard_negatives.Document(str(place), "", self._texts.get(f"t{place}", f"t{place}"))

    def get_ready(self, *, margin: bool) -> None:
        """Nothing."""

    def find(self, queries: Any, k: int) -> Any:
        """Nothing."""

    def best_positives(self, rows: Any) -> list[float]:
        """Nothing."""
        return []


HITS = [(str(n), 1.0 - n / 10, n) for n in range(10)]


@pytest.mark.parametrize(
    ("settings", "best", "wanted"),
    [
        ({"per_query": 3}, None, None),
        ({"per_query": 20}, None, [0, 2, 4, 5, 6, 8, 9]),  # 7 by id, 1 and 3 by text
        ({"per_query": 20, "skip_top": 2}, None, [4, 5, 6, 8, 9]),
        ({"per_query": 20, "margin": 0.1}, 0.7, [4, 5, 6, 8, 9]),
        ({"per_query": 20, "margin": -0.25}, 0.6, [2, 4, 5, 6, 8, 9]),
    ],
)
def test_what_becomes_a_negative(settings: dict[str, Any], best: float | None, wanted: list[int] | None) -> None:
    finder, known = Listed(t1="p", t3="q"), hard_negatives.known_positives([row()])["q"]
    made = hard_negatives.MineConfig(**settings)
    chosen = hard_negatives.choose_negatives(known, HITS, finder, made, (1, 2), best)
    if wanted is not None:
        assert chosen == wanted
    else:
        assert len(chosen) == 3
        assert chosen == sorted(chosen)
        assert chosen == hard_negatives.choose_negatives(known, HITS, finder, made, (1, 2), best)
        draws = {tuple(hard_negatives.choose_negatives(known, HITS, finder, made, (1, n), best)) for n in range(20)}
        assert len(draws) > 5
        assert not {1, 3, 7} & {place for draw in draws for place in draw}


def test_a_model_mines_its_corpus(llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    flags = ("--corpus", documents, "--model", tiny_model, "--per-query", 4, "--depth", 20, "--output", output)
    done = llara("mine", train, *flags, "--json")
    assert done.code == 0, done.err
    assert (done.json["rows"], done.json["negatives"], done.json["without"]) == (5, 20, 0)
    assert done.json["output"] == str(output)
    texts = {item["text"]: item["_id"] for item in rows(documents)}
    for before, after in zip(rows(train), rows(output), strict=True):
        assert {name: before[name] for name in ("query", "pos")} == {name: after[name] for name in ("query", "pos")}
        assert len(set(after["neg"])) == 4
        assert [texts[text] for text in after["neg"]] == after["neg_ids"]
        assert not {*after["pos"], after["query"]} & set(after["neg"])
    parsed = list(read_training_rows(output))
    assert all(item.negative_ids == tuple(raw["neg_ids"]) for item, raw in zip(parsed, rows(output), strict=True))
    tuned = llara("finetune", output, "--model", tiny_model, "--max-steps", 1, "--negatives", 4, "--json")
    assert tuned.code == 0, tuned.err
    again = llara("mine", train, *flags, "--json")
    assert again.json["negatives"] == 20
    assert "nothing to do: mined/" in again.err


def test_an_index_is_mined_and_the_margin_keeps_its_distance(
    llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path
) -> None:
    llara("encode", documents, "--model", tiny_model, "--name", "e")
    llara("index", "e", "--name", "i")
    flags = ("--index", "i", "--per-query", 5, "--depth", 25)
    near = llara("mine", train, *flags, "--name", "near", "--json")
    far = llara("mine", train, *flags, "--name", "far", "--margin", 0.02, "--json")
    assert near.json["negatives"] == 25
    (made,) = [item for item in llara("status", "--json").json["artifacts"] if item["name"] == "near"]
    assert made["parents"] == {"index": "i", "model": "tiny"}
    assert "25 negatives" in llara("status").out
    assert far.code == 0, far.err
    searched = {
        item["query"]: llara("search", item["query"], "--index", "i", "-k", 30, "--json").json["hits"]
        for item in rows(train)
    }
    for item in rows(Path(far.json["output"])):
        scores = {hit["text"]: hit["score"] for hit in searched[item["query"]]}
        assert all(scores[text] <= scores[item["pos"][0]] - 0.02 + 1e-5 for text in item["neg"])


def test_bm25_mines_by_words(llara: Llara, train: Path, documents: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    words = ("mine", train, "--corpus", documents, "--model", "bm25", "--per-query", 3, "--depth", 10, "--json")
    done = llara(*words)
    assert done.code == 0, done.err
    assert all(len(item["neg"]) == 3 for item in rows(Path(done.json["output"])))
    cut = llara(*words, "--max-length", 30, "--query-length", 20)
    assert "BM25 reads whole texts" in cut.err
    assert cut.json["output"] == done.json["output"]
    refused = llara("mine", train, "--corpus", documents, "--model", "bm25", "--margin", 0.1, "--name", "x")
    assert refused.code == 2
    assert "dense model" in refused.error


def test_rows_come_back_in_their_format(llara: Llara, documents: Path, tmp_path: Path, beir: Path) -> None:
    pytest.importorskip("bm25s")
    flags = ("--corpus", documents, "--model", "bm25", "--per-query", 2, "--depth", 10)
    columns = [{"anchor": t[:30], "positive": t, "negative": 'old, with a "quote"'} for t in TEXTS]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["anchor", "positive", "negative"])
        writer.writeheader()
        writer.writerows(columns)
    pq.write_table(pa.Table.from_pylist(columns), tmp_path / "b.parquet")
    tevatron = {
        "query_id": "1",
        "query": TEXTS[0][:30],
        "positive_passages": [{"docid": "d0", "title": "", "text": "x"}],
        "negative_passages": [],
    }
    write_jsonl(tmp_path / "c.jsonl", [tevatron])
    (beir / "qrels/test.tsv").rename(beir / "qrels/train.tsv")
    for name, suffix in (("a.csv", ".csv"), ("b.parquet", ".parquet"), ("c.jsonl", ".jsonl"), (beir, ".jsonl")):
        done = llara("mine", tmp_path / name, *flags, "--name", f"m{suffix[1:]}{len(str(name))}", "--json")
        assert done.code == 0, done.err
        output = Path(done.json["output"])
        assert output.suffix == suffix
        parsed = list(read_training_rows(output))
        before = list(read_training_rows(tmp_path / name))
        assert [(item.query, item.positives) for item in parsed] == [(item.query, item.positives) for item in before]
        assert all(len(item.negatives) == 2 for item in parsed)
        assert not any("old" in text for item in parsed for text in item.negatives)
    (found,) = rows(tmp_path / "ws/mined/mjsonl7/rows.jsonl")
    assert {"docid", "title", "text"} == set(found["negative_passages"][0])
    assert "d0" not in {passage["docid"] for passage in found["negative_passages"]}


def test_a_stopped_run_goes_on(
    llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mine, "BLOCK", 2)
    flags = ("--corpus", documents, "--model", tiny_model, "--per-query", 4, "--depth", 20, "--name", "m")
    whole = llara("mine", train, *flags, workspace=tmp_path / "whole")
    assert whole.code == 0
    find, calls = hard_negatives.IndexCandidates.find, []

    def stop(self: Any, queries: Any, k: int) -> Any:
        calls.append(len(queries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(self, queries, k)

    monkeypatch.setattr(hard_negatives.IndexCandidates, "find", stop)
    assert llara("mine", train, *flags).code == 130
    assert (tmp_path / "ws/mined/m/blocks/000000.json").is_file()
    done = llara("mine", train, *flags)
    assert done.code == 0, done.err
    assert calls == [2, 2, 2, 1]
    made = [tree(tmp_path / run / "mined/m") for run in ("whole", "ws")]
    assert all(made[0][name] == made[1][name] for name in ("rows.jsonl", "manifest.json"))
    assert made[0].keys() == made[1].keys()


def test_what_cannot_be_is_refused(
    llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("my own\n")
    flags = ("--corpus", documents, "--model", tiny_model)
    for more, told in (
        (("--per-query", 300), "leaves no room"),
        (("--skip-top", -1), "must not be negative"),
        (("--output", train), "is an input of this command"),
        (("--output", documents, "--restart"), "is an input of this command"),
        (("--margin", "nan"), "finite"),
        (("--output", foreign), "exists; choose another"),
        (("--output", tmp_path / "x.csv"), "are written as *.jsonl"),
        (("--index", "i"), "give one of"),
    ):
        done = llara("mine", train, *flags, *more)
        assert (done.code, told in done.error) == (2, True), done.err
    assert foreign.read_text() == "my own\n"
    assert llara("mine", train).code == 2
    done = llara("mine", train, *flags, "--output", foreign, "--restart", "--per-query", 2)
    assert done.code == 0, done.err
    assert len(rows(foreign)) == 5


def test_a_mistake_is_told_before_the_corpus_is_encoded(
    llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(train.read_text() + "{\n")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("my own\n")
    flags = ("--corpus", documents, "--model", tiny_model)
    for rows_, more, told in (
        (broken, (), "broken.jsonl:6: not JSON"),
        (train, ("--output", foreign), "exists; choose another"),
        (train, ("--output", tmp_path / "no/x.jsonl"), "no such folder"),
    ):
        done = llara("mine", rows_, *flags, *more)
        assert (done.code, told in done.error) == (2, True), done.err
    assert not list((tmp_path / "ws").glob("*/*"))
    refused = llara("mine", train, "--index", "i", "--max-length", 30)
    assert (refused.code, "is to be encoded" in refused.error) == (2, True)


def test_a_mistake_leaves_no_unfinished_rows_under_the_name(
    llara: Llara, tiny_model: Path, train: Path, documents: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bm25s")
    dense, words = ("--corpus", documents, "--model", tiny_model), ("--corpus", documents, "--model", "bm25")
    for flags in ((*words, "--margin", 0.1), (*dense, "--query-length", 5), (*dense, "--query-length", 5000)):
        assert llara("mine", train, *flags, "--name", "m").code == 2
        assert not (tmp_path / "ws/mined/m").exists()
    assert llara("mine", train, *words, "--name", "m").code == 0


def test_a_folder_that_is_trained_on_is_never_written_into(
    llara: Llara, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    (beir / "qrels/test.tsv").rename(beir / "qrels/train.tsv")
    before = tree(beir)
    for name in ("corpus.jsonl", "queries.jsonl"):
        done = llara(
            "mine", beir, "--corpus", beir, "--model", tiny_model, "--output", beir / name, "--restart", "--depth", 20
        )
        assert (done.code, "is an input of this command" in done.error) == (2, True)
    assert tree(beir) == before


def test_no_positive_of_any_row_of_the_query_is_a_negative(
    llara: Llara, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    """Pairs have one row a positive."""
    pairs = [{"anchor": "about the sea", "positive": text} for text in TEXTS[:3]]
    train = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    flags = ("--corpus", documents, "--model", tiny_model, "--per-query", 40, "--depth", 50, "--json")
    for item in rows(Path(llara("mine", train, *flags).json["output"])):
        negatives = {text for name, text in item.items() if name.startswith("negative")}
        assert len(negatives) == 27
        assert not negatives & set(TEXTS[:3])


def test_a_positive_is_known_without_its_title_and_with_blanks_around() -> None:
    known = hard_negatives.known_positives(
        [row(positives=("the text\n", "Title body")), row(positives=(), positive_ids=())]
    )["q"]
    for document, is_known in (
        (hard_negatives.Document("1", "Title", "the text"), True),
        (hard_negatives.Document("2", "Title", "body"), True),
        (hard_negatives.Document("7", "", "elsewhere"), True),
        (hard_negatives.Document("3", "", "Q"), False),
        (hard_negatives.Document("4", "", " q"), True),
    ):
        assert known.hold(document) is is_known


def test_a_positive_is_cut_where_the_passages_were(
    llara: Llara, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its score is that of its own vector in the index."""
    long = " ".join(TEXTS * 2)
    documents = write_jsonl(tmp_path / "docs.jsonl", [{"_id": str(n), "text": t} for n, t in enumerate([long, *TEXTS])])
    train = write_jsonl(tmp_path / "long.jsonl", [{"query": "bees?", "pos": [long]}])
    llara("encode", documents, "--model", tiny_model, "--max-length", 30, "--name", "e")
    llara("index", "e", "--name", "i")
    best, found = hard_negatives.IndexCandidates.best_positives, []

    def seen(self: Any, rows: Any) -> list[float]:
        found.extend(best(self, rows))
        return found

    monkeypatch.setattr(hard_negatives.IndexCandidates, "best_positives", seen)
    assert llara("mine", train, "--index", "i", "--margin", 0.0, "--depth", 20).code == 0
    hits = llara("search", "bees?", "--index", "i", "--json").json["hits"]
    assert found == pytest.approx([hit["score"] for hit in hits if hit["id"] == "0"], abs=1e-5)


def test_a_tsv_keeps_the_blanks_of_its_texts(llara: Llara, documents: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    train = tmp_path / "rows.tsv"
    train.write_text("anchor\tpositive\n two  blanks\tand\u00a0one  more\n")
    done = llara("mine", train, "--corpus", documents, "--model", "bm25", "--per-query", 2, "--depth", 5, "--json")
    assert done.err.count(f"{train}: columns: anchor, positive") == 1
    (after,) = read_training_rows(Path(done.json["output"]))
    assert (after.query, after.positives) == (" two  blanks", ("and\u00a0one  more",))
