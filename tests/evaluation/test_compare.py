"""``llara compare``: figures, tests and wins from the results of the workspace; plots; what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_sets import FORUMS, random_set, write_set
from program import Llara
from scipy import stats
from tiny import make_model

from llara_cli import app

NAMES = ("scifact", "fiqa", "nfcorpus")


@pytest.fixture(scope="module")
def evaluated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data sets and the results of BM25 and two models on them, measured once."""
    folder = tmp_path_factory.mktemp("evaluated")
    for seed, name in enumerate(NAMES):
        random_set(folder / "sets" / name, seed, queries=8 + 4 * seed)
    random_set(folder / "sets" / "msmarco", 9, split="dev")
    for model in ("bm25", tiny_model, make_model(folder / "other", seed=1)):
        call = ("evaluate", "beir", "--data-root", folder / "sets", "--model", model, "-q", "-w", folder / "ws")
        assert app.run(list(map(str, call))) == 0
    return folder


@pytest.fixture
def root(evaluated: Path, tmp_path: Path) -> Path:
    """The data sets, for a test to change."""
    return shutil.copytree(evaluated / "sets", tmp_path / "sets")


@pytest.fixture
def measured(evaluated: Path, tmp_path: Path) -> Path:
    """The results, in the workspace of the test."""
    return shutil.copytree(evaluated / "ws/results", tmp_path / "ws/results") / "beir"


def values(results: Path, model: str, name: str, metric: str = "nDCG@10") -> np.ndarray:
    """Per-query values, in the order of the query ids."""
    kept = json.loads((results / model / f"{name}.json").read_text())["per_query"]
    return np.array([kept[query][metric] for query in sorted(kept)])


def stepped(plain: list[float]) -> Any:
    """Holm's correction, written down once more."""
    order = np.argsort(plain)
    steps = np.maximum.accumulate([min(1, plain[place] * (len(plain) - rank)) for rank, place in enumerate(order)])
    found = np.empty(len(plain))
    found[order] = steps
    return pytest.approx(found.tolist())


def test_figures_and_tests_are_scipys(llara: Llara, measured: Path) -> None:
    result = llara("compare", "tiny", "bm25", "--json").json
    assert (result["benchmark"], result["models"], result["test"]) == ("beir", ["tiny", "bm25"], "t-test")
    assert list(result["datasets"]) == ["nfcorpus", "fiqa", "scifact", "msmarco"]
    (comparison,) = result["comparisons"]
    assert (comparison["baseline"], comparison["model"]) == ("tiny", "bm25")
    plain = []
    for name, found in result["datasets"].items():
        mine, theirs = values(measured, "bm25", name), values(measured, "tiny", name)
        assert found["scores"] == pytest.approx({"tiny": theirs.mean(), "bm25": mine.mean()})
        assert found["queries"] == len(mine)
        row = comparison["rows"][name]
        assert row["p"] == pytest.approx(stats.ttest_rel(mine, theirs).pvalue, rel=1e-9)
        assert row["difference"] == pytest.approx((mine - theirs).mean())
        assert row["wins"] == (mine > theirs + 1e-9).sum()
        assert row["losses"] == (mine < theirs - 1e-9).sum()
        assert row["wins"] + row["ties"] + row["losses"] == len(mine)
        for model, (low, high) in found["intervals"].items():
            assert low <= found["scores"][model] <= high
        plain.append(row["p"])
    mean = result["mean"]
    for model in ("tiny", "bm25"):  # not over MS MARCO
        assert mean["scores"][model] == pytest.approx(np.mean([values(measured, model, name).mean() for name in NAMES]))
    plain.append(comparison["rows"]["mean"]["p"])
    assert [row["p_holm"] for row in comparison["rows"].values()] == stepped(plain)


def test_the_randomisation_test_is_scipys(llara: Llara, measured: Path) -> None:
    result = llara("compare", "tiny", "bm25", "--test", "randomisation", "--json").json
    mine, theirs = values(measured, "bm25", "scifact"), values(measured, "tiny", "scifact")
    exact = stats.permutation_test(
        (mine, theirs), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert result["comparisons"][0]["rows"]["scifact"]["p"] == pytest.approx(exact)


def test_several_are_held_against_the_first_and_corrected_together(llara: Llara, measured: Path) -> None:
    outcome = llara("compare", "bm25", "tiny", "other", "--json")
    pairs = [(comparison["baseline"], comparison["model"]) for comparison in outcome.json["comparisons"]]
    assert pairs == [("bm25", "tiny"), ("bm25", "other")]
    alone = llara("compare", "bm25", "tiny", "--json").json["comparisons"][0]["rows"]
    together = outcome.json["comparisons"][0]["rows"]
    assert all(together[name]["p"] == alone[name]["p"] for name in alone)
    rows = [row for comparison in outcome.json["comparisons"] for row in comparison["rows"].values()]
    assert [row["p_holm"] for row in rows] == stepped([row["p"] for row in rows])
    shown = llara("compare", "bm25", "tiny", "other").out
    assert "tiny against bm25" in shown
    assert "other against bm25" in shown
    assert "over 10 tests" in shown


def test_a_group_is_one_line(llara: Llara, root: Path, tiny_model: Path, tmp_path: Path) -> None:
    for seed, forum in enumerate(FORUMS):
        random_set(root / "cqadupstack" / forum, seed, queries=4 + seed)
    for model in ("bm25", tiny_model):
        llara("evaluate", "beir", "--datasets", "cqadupstack,scifact", "--data-root", root, "--model", model)
    result = llara("compare", "tiny", "bm25", "--json").json
    assert list(result["datasets"]) == ["cqadupstack", "scifact"]
    results = tmp_path / "ws/results/beir"
    for model in ("bm25", "tiny"):
        forums = [values(results, model, f"cqadupstack/{forum}").mean() for forum in FORUMS]
        assert result["datasets"]["cqadupstack"]["scores"][model] == pytest.approx(np.mean(forums))
        both = (np.mean(forums) + values(results, model, "scifact").mean()) / 2
        assert result["mean"]["scores"][model] == pytest.approx(both)


def test_another_metric(llara: Llara, measured: Path) -> None:
    result = llara("compare", "tiny", "bm25", "--metric", "R@100", "--json").json
    assert result["datasets"]["scifact"]["scores"]["bm25"] == pytest.approx(
        values(measured, "bm25", "scifact", "R@100").mean()
    )
    refused = llara("compare", "tiny", "bm25", "--metric", "AP")
    assert refused.code == 2
    assert "has no AP, but" in refused.error
    assert "evaluate with --metrics AP to add it" in refused.error


def test_the_plot_is_written_twice_beside_the_results(llara: Llara, measured: Path) -> None:
    result = llara("compare", "tiny", "bm25", "--json").json
    png, svg = (measured / f"compare-tiny-bm25{suffix}" for suffix in (".png", ".svg"))
    assert result["plots"] == [str(png), str(svg)]
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width > 800
    assert height > 400
    assert svg.read_text().startswith("<?xml")
    before = png.read_bytes(), svg.read_bytes()
    llara("compare", "tiny", "bm25")
    assert (png.read_bytes(), svg.read_bytes()) == before


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_goes_where_it_is_wanted(llara: Llara, measured: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bars{suffix}"
    assert llara("compare", "tiny", "bm25", "--plot", path, "--json").json["plots"] == [str(path)]
    assert path.stat().st_size > 1000
    assert not list(measured.glob("compare-*"))


def test_figures_are_shown_where_no_plot_can_be_written(llara: Llara, measured: Path) -> None:
    (measured / "compare-tiny-bm25.png").mkdir()  # stands for a workspace that is only read
    outcome = llara("compare", "tiny", "bm25", "--json")
    assert (outcome.code, outcome.json["plots"]) == (0, [])
    assert "warning: no plot: " in outcome.err


def test_the_formats(llara: Llara, measured: Path) -> None:
    call = ("compare", "tiny", "bm25")
    result = llara(*call, "--json").json
    rows = list(csv.DictReader(io.StringIO(llara(*call, "--format", "csv").out)))
    assert [row["dataset"] for row in rows] == ["nfcorpus", "fiqa", "scifact", "msmarco", "mean"]
    assert float(rows[2]["p_holm"]) == result["comparisons"][0]["rows"]["scifact"]["p_holm"]
    shown = llara(*call).out
    assert "beir (nDCG@10): bm25 against tiny" in shown
    assert "paired t-test, two-sided; p after Holm's correction over 5 tests" in shown
    assert "| scifact |" in llara(*call, "--format", "markdown").out
    assert r"\toprule" in llara(*call, "--format", "latex").out


def test_what_is_refused(llara: Llara, measured: Path, root: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        outcome = llara("compare", *arguments)
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        return outcome.error

    assert "no results of tyni" in error("tyni", "bm25")
    assert "there are: bm25, other, tiny" in error("tyni", "bm25")
    assert "name at least two models" in error("tiny")
    assert "name at least two models" in error("tiny", "tiny")
    assert "--test must be t-test or randomisation, not 'z'" in error("tiny", "bm25", "--test", "z")
    assert "--benchmark nope: not all have results on it; on all: beir" in error("tiny", "bm25", "--benchmark", "nope")
    assert "write it as .png or .svg" in error("tiny", "bm25", "--plot", tmp_path / "bars.gif")
    assert "no such folder" in error("tiny", "bm25", "--plot", tmp_path / "no" / "bars.png")
    shutil.copytree(root / "scifact", root / "mine")
    llara("evaluate", root / "mine", "--model", "bm25", "--split", "test")
    shutil.copytree(tmp_path / "ws/results/mine/bm25", tmp_path / "ws/results/mine/tiny")
    assert "choose with --benchmark: beir, mine" in error("tiny", "bm25")
    assert llara("compare", "tiny", "bm25", "--benchmark", "beir").code == 0


def test_data_that_differ_are_refused(llara: Llara, measured: Path) -> None:
    path = measured / "tiny" / "scifact.json"
    kept: dict[str, Any] = json.loads(path.read_text())
    fewer = dict(list(kept["per_query"].items())[:-1])
    path.write_text(json.dumps(kept | {"per_query": fewer}))
    outcome = llara("compare", "tiny", "bm25")
    assert outcome.code == 2
    assert "scifact: tiny and bm25 were evaluated on different data" in outcome.error
    path.write_text(json.dumps(kept | {"fingerprints": kept["fingerprints"] | {"qrels": "other"}}))
    assert "were evaluated on different data" in llara("compare", "tiny", "bm25").error


def test_sets_that_not_all_have_are_left_out_and_named(llara: Llara, measured: Path) -> None:
    (measured / "tiny" / "fiqa.json").unlink()
    outcome = llara("compare", "bm25", "tiny", "--json")
    assert "not evaluated for all models, left out: fiqa" in outcome.err
    assert list(outcome.json["datasets"]) == ["nfcorpus", "scifact", "msmarco"]
    for path in (measured / "tiny").glob("*.json"):
        if path.stem != "scifact":
            path.unlink()
    (measured / "bm25" / "scifact.json").unlink()
    outcome = llara("compare", "bm25", "tiny")
    assert outcome.code == 2
    assert "have no data set of beir in common" in outcome.error


def test_names_in_any_script_stay_apart_and_are_shown(llara: Llara, root: Path, measured: Path, tmp_path: Path) -> None:
    queries = [f"q{number}" for number in range(8)]
    names = ("基线", "微调", "org/model", "org-model", "$a$ _b", "_hidden")
    for rank, name in enumerate(names):
        run = tmp_path / f"run{rank}.trec"
        run.write_text("".join(f"{query} Q0 d{rank} 1 1.0 t\n" for query in queries))
        call = ("evaluate", root / "scifact", "--run", run, "--name", name, "--json")
        assert llara(*call).json["model"] == name
    assert len(list((tmp_path / "ws/results/scifact").iterdir())) == len(names)
    result = llara("compare", *names, "--json").json
    assert result["models"] == list(names)
    assert len({plot for plot in result["plots"] if Path(plot).is_file()}) == 2
    assert result["datasets"]["scifact"]["scores"].keys() == set(names)
    shown = llara("evaluate", root / "scifact", "--run", tmp_path / "run0.trec", "--name", "基线").out
    assert all(name in shown for name in ("微调", "org/model", "$a$ _b"))
    svg = tmp_path / "bars.svg"
    assert llara("compare", "org/model", "$a$ _b", "--plot", svg).code == 0
    assert not llara("compare", "org/model", "org-model", "--plot", svg).err.count("warning")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_names_that_are_not_utf8_are_drawn_with_escapes(llara: Llara, root: Path, tmp_path: Path) -> None:
    folder = (root / "scifact").rename(root / os.fsdecode(b"set\xe9"))
    for name in ("run", "other"):
        run = tmp_path / f"{name}.trec"
        run.write_text("q0 Q0 d0 1 1.0 t\n")
        assert llara("evaluate", folder, "--run", run, "--json", "-q").code == 0
    svg = tmp_path / "bars.svg"
    outcome = llara("compare", "run", "other", "--plot", svg, "--json")
    assert (outcome.code, svg.is_file()) == (0, True), outcome.err


def test_a_renamed_folder_goes_by_its_new_name_and_is_not_written_into(
    llara: Llara, root: Path, measured: Path, tmp_path: Path
) -> None:
    (measured / "other").rename(measured / "first")
    assert llara("compare", "first", "bm25", "--json").json["models"] == ["first", "bm25"]
    run = tmp_path / "first.trec"
    run.write_text("q0 Q0 d0 1 1.0 t\n")
    call = ("evaluate", "beir", "--datasets", "scifact", "--data-root", root, "--run", run)
    outcome = llara(*call)
    assert (outcome.code, "has the results of 'other'" in outcome.error) == (2, True)


def test_one_query_is_no_test(llara: Llara, tmp_path: Path) -> None:
    write_set(tmp_path / "sets/one", {"d0": "sea", "d1": "boat"}, {"q0": "sea"}, [("q0", "d0", 1)])
    for number, document in enumerate(("d0", "d1")):
        run = tmp_path / f"run{number}.trec"
        run.write_text(f"q0 Q0 {document} 1 1.0 t\n")
        assert llara("evaluate", tmp_path / "sets/one", "--run", run).code == 0
    for test in ("t-test", "randomisation"):
        outcome = llara("compare", "run0", "run1", "--test", test, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["comparisons"][0]["rows"]["one"]["p"] is None


def test_nothing_to_compare(llara: Llara, tmp_path: Path) -> None:
    outcome = llara("compare", "a", "b")
    assert outcome.code == 2
    assert "there are: none yet" in outcome.error
    assert not (tmp_path / "ws").exists()
