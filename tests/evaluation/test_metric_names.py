"""Metrics as users write them: any of ir_measures', with its parameters."""

from __future__ import annotations

import math

import ir_measures
import pytest

from llara_cli.core.errors import UserError
from llara_cli.evaluation.metric_names import cutoff, parse, parse_metrics
from llara_cli.evaluation.metrics import evaluate

QRELS = {"q 1": {"a": 3, "b": 1, "c": 0, "d": 2}, "q2": {"a": 1}}
RUN = {"q 1": {"x": 9.0, "b": 8.0, "a": 7.5, "c": 3.0}, "q2": {"b": 2.0, "a": 1.0}}


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("nDCG(dcg='exp-log2')@10", ir_measures.nDCG(dcg="exp-log2") @ 10),
        ("nDCG(gains={1: 1, 2: 3, 3: 7})@10", ir_measures.nDCG(gains={1: 1, 2: 3, 3: 7}) @ 10),
        ("R(rel=2, judged_only=True)@5", ir_measures.R(rel=2, judged_only=True) @ 5),
        ("ERR@20", ir_measures.ERR @ 20),
        ("IPrec@0.1", ir_measures.IPrec @ 0.1),
        ("SetF(beta=0.5)", ir_measures.SetF(beta=0.5)),
        ("Compat(p=0.8)", ir_measures.Compat(p=0.8)),
        ("Judged@10", ir_measures.Judged @ 10),
        ("infAP", ir_measures.infAP),
        ("Accuracy@5", ir_measures.Accuracy @ 5),
        ("Bpref(rel=2)", ir_measures.Bpref(rel=2)),
    ],
)
def test_parameters_mean_what_ir_measures_says(name: str, measure: object) -> None:
    assert parse(name) == measure
    # numbers for gdeval, which takes no other query ids
    qrels, run = ({str(n): part for n, part in enumerate(side.values(), 1)} for side in (QRELS, RUN))
    theirs = ir_measures.calc_aggregate([measure], qrels, run)[measure]
    assert evaluate(QRELS, RUN, [name]).means[name] == pytest.approx(theirs, abs=1e-9)


def test_commas_inside_brackets_do_not_separate() -> None:
    listed = "nDCG@10, R(rel=2, judged_only=True)@5,AP,nDCG(gains={1:1,2:3})@5, nDCG@10"
    assert parse_metrics(listed) == ("nDCG@10", "R(rel=2, judged_only=True)@5", "AP", "nDCG(gains={1:1,2:3})@5")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDCG(dcg=log2)@10", "quote text"),
        ("nDCG(depth=3)@10", "takes no 'depth'; it takes cutoff, dcg, gains, judged_only"),
        ("R(rel)@10", r"as in R\(rel=2\)@100"),
        ("R(rel=True)@10", "rel must be a whole number, not True"),
        ("P@1.5", "cutoff must be a whole number, not 1.5"),
        ("P@1.2.3", "'1.2.3' is not a number"),
        ("P(rel=0)@3", "between 1 and"),
        ("nDCG(dcg='log3')@10", "nDCG"),
        ("SetF(beta='x')", "beta must be a number, not 'x'"),
        ("nDCG(gains={1: 0.5})@10", "gains must be whole numbers"),
        ("nDCG(gains={1: 1000000000000})@10", "gains must be whole numbers from -1000000 to 1000000"),
    ],
)
def test_what_is_wrong_is_said(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(name)


@pytest.mark.parametrize(("name", "package"), [("RBP(rel=1)", "cwl-eval"), ("alpha_nDCG@10", "pyndeval")])
def test_what_another_package_would_compute_names_it(name: str, package: str) -> None:
    if ir_measures.providers.registry[package.replace("-", "_")].is_available():
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=f"pip install {package}"):
        parse(name)


def test_how_deep_a_metric_looks() -> None:
    names = ("R(rel=2)@1000", "AP", "nDCG@10", "MRR@10", "IPrec@0.1")
    assert [cutoff(name) for name in names] == [1000, None, 10, 10, None]


SPELLINGS = ("{}", "{}@3", "{}(rel=2)", "{}(rel=2)@3", "{}(rel=1000000)", "{}(rel=1000000)@3", "{}@0.1")
EDGES: dict[str, tuple[dict[str, int], dict[str, float]]] = {
    "no relevant document": ({"a": 0, "b": 0}, {"a": 1.0, "b": 2.0}),
    "no hit": ({"a": 1}, {}),
    "only a relevant hit": ({"a": 1}, {"a": 1.0}),
    "only an unjudged hit": ({"a": 1}, {"z": 1.0}),
    "negative grades": ({"a": -2, "b": 3, "c": 0}, {"a": 1.0, "b": 0.5, "z": 2.0}),
    "negative grades alone": ({"a": -1}, {"a": 1.0}),
    "infinite scores": ({"a": 1, "b": 0}, {"a": math.inf, "b": -math.inf}),
    "equal scores": ({"a": 1, "b": 0}, {"a": 1.0, "b": 1.0}),
}


def every_metric() -> list[str]:
    """Each measure that can be computed here, in each spelling that it takes."""
    found = []
    for measure in dict.fromkeys(ir_measures.measures.registry):
        for spelling in SPELLINGS:
            try:
                parse(spelling.format(measure))
            except UserError:
                continue
            found.append(spelling.format(measure))
    return found


@pytest.mark.parametrize("case", EDGES)
def test_every_metric_gives_a_number_from_0_to_1_whatever_the_run(case: str) -> None:
    grades, hits = EDGES[case]
    metrics = every_metric()
    assert len(metrics) > 70
    means = evaluate({"q": grades}, {"q": hits}, metrics).means
    assert not {name: value for name, value in means.items() if not 0 <= value <= 1}


def test_accuracy_of_a_run_in_which_every_hit_is_relevant() -> None:
    """There is no pair to be in the wrong order, and nothing to divide by."""
    assert evaluate({"q": {"a": 1, "b": 2}}, {"q": {"a": 1.0, "b": 2.0}}, ["Accuracy@5"]).means == {"Accuracy@5": 1.0}
    means = evaluate({"q": {"a": 1, "b": 2}}, {"q": {"b": 3.0, "x": 2.0, "a": 1.0}}, ["Accuracy@1", "Accuracy"]).means
    assert means == {"Accuracy@1": 1.0, "Accuracy": 0.5}


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ({"a": 1, "b": 7}, r"ERR@5: gdeval.pl computes it, and takes grades up to 4: query 'q' has 7"),
        ({"a b": 1}, "takes no document id such as 'a b'"),
        ({"": 1}, "takes no document id such as ''"),
    ],
)
def test_what_gdeval_cannot_read_is_said(grades: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate({"q": grades}, {"q": {"x": 1.0}}, ["ERR@5"])
    assert evaluate({"q": grades}, {"q": {"x": 1.0}}, ["nDCG@5"]).means == {"nDCG@5": 0.0}
