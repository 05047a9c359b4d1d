"""Metrics against trec_eval (through pytrec_eval), MS MARCO's rule for MRR, and numbers made by hand."""

from __future__ import annotations

import math
import warnings

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from llara_cli.core.errors import UserError
from llara_cli.data.runs import Qrels, Run
from llara_cli.evaluation.metrics import DEFAULT_METRICS, evaluate

THEIRS = {"nDCG@10": "ndcg_cut_10", "R@100": "recall_100", "P@5": "P_5", "AP": "map", "MRR": "recip_rank"}


def random_case(seed: int, grades: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Qrels, Run]:
    """Judgements and a run without equal scores; some judged documents are not found, some found ones not judged."""
    random = np.random.default_rng(seed)
    documents = [f"d{number}" for number in range(300)]
    qrels: Qrels = {}
    run: Run = {}
    for query in (f"q{number}" for number in range(30)):
        judged = random.choice(documents, random.integers(1, 40), replace=False).tolist()
        qrels[query] = {document: int(random.choice(grades)) for document in judged}
        found = random.choice(documents, random.integers(1, 200), replace=False).tolist()
        scores = random.permutation(len(found)) / 7
        run[query] = dict(zip(found, scores.tolist(), strict=True))
    return qrels, run


def trec_eval(qrels: Qrels, run: Run, measures: set[str]) -> dict[str, dict[str, float]]:
    """What pytrec_eval says, query by query."""
    found: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return found


@pytest.mark.parametrize("grades", [(0, 1), (0, 1, 2, 3), (-1, 0, 1, 2), (-1, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_trec_eval(seed: int, grades: tuple[int, ...]) -> None:
    qrels, run = random_case(seed, grades)
    mine, theirs = evaluate(qrels, run, list(THEIRS)), trec_eval(qrels, run, set(THEIRS.values()))
    assert mine.per_query.keys() == qrels.keys()
    for query, row in mine.per_query.items():
        assert row == pytest.approx({name: theirs[query][other] for name, other in THEIRS.items()}, abs=1e-9)
    for name, other in THEIRS.items():
        assert mine.means[name] == pytest.approx(np.mean([row[other] for row in theirs.values()]), abs=1e-9)


@pytest.mark.parametrize("cutoff", [1, 3, 10])
def test_mrr_at_k_is_trec_evals_on_the_best_k(cutoff: int) -> None:
    qrels, run = random_case(7)
    best = {q: dict(sorted(hits.items(), key=lambda hit: -hit[1])[:cutoff]) for q, hits in run.items()}
    theirs = trec_eval(qrels, best, {"recip_rank"})
    mine = evaluate(qrels, run, [f"MRR@{cutoff}", f"RR@{cutoff}"])
    for query, row in mine.per_query.items():
        assert row == pytest.approx(dict.fromkeys(row, theirs[query]["recip_rank"]), abs=1e-9)


def test_numbers_made_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 1, "c": 0, "far": 2}}
    run = {"q": {"x": 9.0, "a": 8.0, "c": 7.0, "b": 6.0}}
    found = 3 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    means = evaluate(qrels, run, ["nDCG@10", "R@100", "R@2", "MRR@10", "MRR@1"]).means
    assert means == pytest.approx({"nDCG@10": found / ideal, "R@100": 2 / 3, "R@2": 1 / 3, "MRR@10": 1 / 2, "MRR@1": 0})


@pytest.mark.parametrize("seed", range(20))
def test_equal_scores_count_as_the_reference_implementations_have_them(seed: int) -> None:
    qrels, run = random_case(seed)
    tied = {query: {document: float(score // 3) for document, score in hits.items()} for query, hits in run.items()}
    mine, theirs = evaluate(qrels, tied, list(THEIRS)), trec_eval(qrels, tied, set(THEIRS.values()))
    for query, row in mine.per_query.items():
        assert row == pytest.approx({name: theirs[query][other] for name, other in THEIRS.items()}, abs=1e-9)
    measures = [ir_measures.nDCG @ 10, ir_measures.R @ 100, ir_measures.RR @ 10]
    whole = ir_measures.calc_aggregate(measures, qrels, tied)
    assert list(evaluate(qrels, tied).means.values()) == pytest.approx([whole[measure] for measure in measures])


def test_the_mean_is_over_the_queries_with_judgments() -> None:
    qrels = {"found": {"a": 1}, "without hits": {"a": 1}, "not in the run": {"a": 1}, "nothing relevant": {"a": 0}}
    run = {"found": {"a": 1.0}, "without hits": {}, "nothing relevant": {"a": 1.0}, "not judged": {"a": 1.0}}
    found = evaluate(qrels, run)
    assert found.queries == 4
    assert found.means == dict.fromkeys(DEFAULT_METRICS, 0.25)
    assert found.per_query.keys() == qrels.keys()
    assert set(found.per_query["found"].values()) == {1.0}


@pytest.mark.parametrize("grade", [-1, -2, -10])
def test_negative_grades_are_not_relevant(grade: int) -> None:
    """A query with grades below -1 alone would end the process, were trec_eval given it."""
    qrels = {"q": {"a": grade, "b": 1}, "all": {"a": grade}}
    found = evaluate(qrels, {"q": {"a": 2.0, "b": 1.0}, "all": {"a": 1.0}}, ["R@1", "MRR@10", "nDCG@10", "AP"])
    assert found.per_query["q"] == pytest.approx({"R@1": 0, "MRR@10": 0.5, "nDCG@10": 1 / math.log2(3), "AP": 0.5})
    assert set(found.per_query["all"].values()) == {0.0}
    assert evaluate({"all": {"a": grade}}, {"all": {"a": 1.0}}).means == dict.fromkeys(DEFAULT_METRICS, 0.0)


def test_the_spelling_stays() -> None:
    names = ["MRR@10", "rr@10", "ndcg@10", "Recall@100", "R(rel=2)@100", "MAP"]
    qrels = {"q": {"a": 1, "b": 2, "c": 2}}
    found = evaluate(qrels, {"q": {"x": 3.0, "a": 2.0, "b": 1.0}}, names)
    assert list(found.means) == names
    assert found.means["MRR@10"] == found.means["rr@10"] == 0.5
    assert found.means["Recall@100"] == pytest.approx(2 / 3)
    assert found.means["R(rel=2)@100"] == 0.5


def test_metrics_do_not_depend_on_each_other() -> None:
    qrels, run = random_case(3)
    names = ["R(rel=2)@100", "nDCG@10", "P(rel=3)@5", "R@100"]
    together = evaluate(qrels, run, names).means
    assert together == {name: evaluate(qrels, run, [name]).means[name] for name in names}


def test_the_order_of_a_run_does_not_matter() -> None:
    qrels, run = random_case(4)
    turned = {query: dict(reversed(hits.items())) for query, hits in reversed(run.items())}
    assert evaluate(qrels, turned) == evaluate(qrels, run)


@pytest.mark.parametrize(
    "name",
    ["nDGC@10", "", "nDCG@", "nDCG@ten", "nDCG@0", "R@-1", "nDCG@4294967297", "R", "R(rel=0)@5", "AP(x=1)", "NumRet"],
)
def test_unknown_metrics(name: str) -> None:
    with pytest.raises(UserError, match="metric") as caught:
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, ["nDCG@10", name])
    assert repr(name) in str(caught.value)


def test_unknown_metrics_come_with_examples() -> None:
    with pytest.raises(UserError, match=r"nDCG@10, R@100, MRR@10"):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, ["precision"])


def test_a_run_of_other_queries_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"'7'.*'q1'"):
        evaluate({"q1": {"a": 1}}, {"7": {"a": 1.0}})


def test_an_empty_run_scores_zero() -> None:
    assert evaluate({"q1": {"a": 1}}, {}).means == dict.fromkeys(DEFAULT_METRICS, 0.0)


def test_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    qrels, run = random_case(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(qrels, run)
    assert capfd.readouterr() == ("", "")
