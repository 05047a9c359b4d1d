"""Every figure is pytrec_eval's, on 200 runs and judgments that hypothesis makes up."""

from __future__ import annotations

import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llara_cli.data.runs import Qrels, Run
from llara_cli.evaluation.metrics import averaged, evaluate, score_queries
from llara_cli.pipelines.evaluate import Scoring

THEIRS = {
    "nDCG@10": "ndcg_cut_10", "nDCG@3": "ndcg_cut_3", "nDCG": "ndcg", "R@100": "recall_100", "R@5": "recall_5",
    "P@5": "P_5", "AP": "map", "AP@100": "map_cut_100", "MRR": "recip_rank", "Success@5": "success_5", "Rprec": "Rprec",
    "Bpref": "bpref",
}  # fmt: skip
DOCUMENTS = [f"d{number}" for number in range(25)]
QUERIES = [f"q{number}" for number in range(5)]
# few different scores, so that many are equal; documents of either side that the other does not know
RUNS = st.dictionaries(
    st.sampled_from(QUERIES),
    st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 6).map(lambda score: score / 4), max_size=25),
    max_size=5,
)
QRELS = st.dictionaries(
    st.sampled_from(QUERIES),
    st.dictionaries(st.sampled_from([*DOCUMENTS, "unfound"]), st.integers(0, 3), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


def trec_eval(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """pytrec_eval's values of the queries that it answers for."""
    found: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(qrels, set(THEIRS.values())).evaluate(
        {query: hits for query, hits in run.items() if hits}
    )
    return found


@given(qrels=QRELS, run=RUNS)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_the_figures_are_those_of_pytrec_eval(qrels: Qrels, run: Run) -> None:
    theirs = trec_eval(qrels, run)
    mine = averaged(score_queries(qrels, run, list(THEIRS)))
    assert mine.queries == len(qrels)
    assert mine.per_query.keys() == qrels.keys()
    for query, row in mine.per_query.items():
        # a query without hits is not in pytrec_eval's answer: it counts 0 here
        values = theirs.get(query, dict.fromkeys(THEIRS.values(), 0.0))
        assert row == pytest.approx({name: values[other] for name, other in THEIRS.items()}, abs=1e-9)
    for name, other in THEIRS.items():
        total = sum(row[other] for row in theirs.values())
        assert mine.means[name] == pytest.approx(total / len(qrels), abs=1e-9)


@given(qrels=QRELS, run=RUNS, window=st.integers(1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_window_at_a_time_gives_the_same_figures(qrels: Qrels, run: Run, window: int) -> None:
    known = {query: hits for query, hits in run.items() if query in qrels}
    scoring = Scoring(qrels, list(THEIRS), window)
    passed = list(scoring.watch((query, list(hits.items())) for query, hits in known.items()))
    assert [query for query, _ in passed] == list(known)
    assert scoring.finish() == evaluate(qrels, known, list(THEIRS))
