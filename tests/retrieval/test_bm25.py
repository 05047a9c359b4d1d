"""BM25: against its formula, and against what is published for SciFact."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llara_cli.core.errors import UserError
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import Document, read_documents
from llara_cli.data.runs import read_qrels
from llara_cli.evaluation.metrics import evaluate
from llara_cli.retrieval.bm25 import K1, B, Bm25

bm25s = pytest.importorskip("bm25s", reason="extra bm25 is not installed")

TEXTS = {
    "c": "red green blue blue",
    "a": "red red yellow",
    "b": "green fox",
    "d": "yellow zebra zebra zebra zebra zebra",
}


def by_formula(query: list[str], texts: dict[str, str]) -> dict[str, float]:
    """BM25 as Lucene computes it, written down once more."""
    words = {name: Counter(text.split()) for name, text in texts.items()}
    mean = sum(counts.total() for counts in words.values()) / len(words)
    scores: dict[str, float] = {}
    for name, counts in words.items():
        score = 0.0
        for word in query:
            having = sum(word in other for other in words.values())
            idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            score += idf * counts[word] / (counts[word] + K1 * (1 - B + B * counts.total() / mean))
        if score:
            scores[name] = score
    return scores


@pytest.mark.parametrize("query", ["red", "green yellow", "blue blue zebra", "fox red green"])
def test_follows_the_formula(query: str) -> None:
    (hits,) = Bm25(list(TEXTS), list(TEXTS.values())).search([query], 10)
    expected = by_formula(query.split(), TEXTS)
    assert dict(hits) == pytest.approx(expected, rel=1e-5)
    assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))


def test_equal_scores_are_ordered_by_id() -> None:
    ids = ["9", "10", "b", "2", "a"]
    (hits,) = Bm25([*ids, "x"], [*["same words here"] * 5, "other"]).search(["same"], 10)
    assert [name for name, _ in hits] == ["10", "2", "9", "a", "b"]
    (cut,) = Bm25([*ids, "x"], [*["same words here"] * 5, "other"]).search(["same"], 3)
    assert cut == hits[:3]


@pytest.mark.parametrize("query", ["", "   ", "the of and", "unheard", "?!"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    nothing, something = Bm25(list(TEXTS), list(TEXTS.values())).search([query, "red"], 2)
    assert nothing == []
    assert len(something) == 2


def test_documents_that_share_no_word_are_no_hits() -> None:
    (hits,) = Bm25(list(TEXTS), list(TEXTS.values())).search(["fox"], 10)
    assert [name for name, _ in hits] == ["b"]


def test_empty_documents_are_never_found() -> None:
    (hits,) = Bm25(["a", "b", "c"], ["", "fox", "the"]).search(["fox the"], 10)
    assert [name for name, _ in hits] == ["b"]


def test_words_are_stemmed_and_of_any_case() -> None:
    (hits,) = Bm25(["a", "b"], ["Running foxes", "nothing"]).search(["RUNS fox"], 10)
    assert [name for name, _ in hits] == ["a"]


def test_other_scripts() -> None:
    (hits,) = Bm25(["a", "b"], ["größe straße", "日本 語"]).search(["Größe 日本"], 10)
    assert {name for name, _ in hits} == {"a", "b"}


@pytest.mark.parametrize("texts", [[], ["", ""], ["the", "of"]])
def test_a_corpus_without_words(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no word"):
        Bm25([str(row) for row in range(len(texts))], texts)


def test_refuses_no_hits() -> None:
    with pytest.raises(UserError, match="positive"):
        Bm25(["a"], ["fox"]).search(["fox"], 0)


def test_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    list(Bm25(list(TEXTS), list(TEXTS.values())).search(["red"], 2))
    assert capfd.readouterr() == ("", "")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UserError, match=r"pip install 'llara\[bm25\]'"):
        Bm25(["a"], ["fox"])


def test_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from llara_cli.retrieval.bm25 import Bm25\n"
        "texts = [f'w{n % 7} w{n % 5} w{n % 3} common' for n in range(60)]\n"
        "print(list(Bm25([str(n) for n in range(60)], texts).search(['w1 w2 common', 'w0 w6'], 9)))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_scifact(data_root: Path) -> None:
    """Anserini (flat, the same settings): nDCG@10 0.679."""
    folder = BeirFolder(data_root / "scifact")
    qrels = read_qrels(folder.qrels("test"))
    documents = list(read_documents(folder.corpus))
    queries = {query.id: query.text for query in read_documents(folder.queries) if query.id in qrels}
    bm25 = Bm25([document.id for document in documents], [document.passage for document in documents])
    run = dict(zip(queries, map(dict, bm25.search(list(queries.values()), 100)), strict=True))
    found = evaluate(qrels, run)
    assert found.queries == 300
    assert 0.66 <= found.means["nDCG@10"] <= 0.68
    assert found.means["nDCG@10"] == pytest.approx(0.6769, abs=5e-4)
    assert found.means["R@100"] == pytest.approx(0.9287, abs=2e-3)


def test_documents_are_read_once_and_not_kept() -> None:
    texts: list[str] = []

    def stream() -> Iterator[Document]:
        for number in range(10_000):
            texts.append(f"w{number % 97} w{number % 13}")
            yield Document(f"d{number}", "", texts[-1])

    streamed = Bm25.over(stream())
    whole = Bm25([f"d{number}" for number in range(10_000)], texts)
    assert list(streamed.search(["w5 w12", "w96"], 50)) == list(whole.search(["w5 w12", "w96"], 50))
