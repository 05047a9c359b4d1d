"""Tables: published figures beside ours, the best in bold, every format, and the width of the screen."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from judged_sets import FORUMS, random_set
from program import Llara
from rich.console import Console as Screen

from llara_cli.commands.render import drawn, wrapped
from llara_cli.evaluation.leaderboard import LeaderboardEntry, means, published
from llara_cli.evaluation.result_tables import ResultTable, Row, leaderboard_table, result_table
from llara_cli.evaluation.table_formats import latex, markdown

BM25 = ("--model", "bm25")
ZERO_SHOT = ("trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020", "quora",
             "dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact")  # fmt: skip


def result_of(names: tuple[str, ...], value: float = 0.5) -> dict[str, Any]:
    """A result on some of BEIR's sets."""
    figures = {name: {"nDCG@10": value, "R@100": 0.9, "queries": 1234} for name in names}
    counted = [name for name in names if name != "msmarco"]
    return {
        "benchmark": "beir",
        "model": "mine",
        "datasets": figures,
        "mean": {"nDCG@10": value, "datasets": len(counted)},
    }


def test_the_published_figures_are_the_sourced_ones(data_root: Path) -> None:
    """As the project's list has them: nothing more, nothing from memory."""
    path = data_root.parent / "published.json"
    if not path.is_file():
        pytest.skip(f"no list of published figures at {path}")
    listed = json.loads(path.read_text())
    ours = {system.name: system for system in published()}
    expected: dict[str, dict[str, dict[str, float]]] = {}
    for name, cells in listed["systems"].items():
        expected[name] = {key: {"nDCG@10": value} for key, value in cells.items() if key != "source"}
    for name, cells in listed["headline"].items():
        figures = expected.setdefault(name, {})
        for key, value in cells.items():
            if key != "source" and not key.startswith("beir mean"):
                dataset, metric = key.rsplit(" ", 1)
                figures.setdefault(dataset, {})[metric] = value
    assert {name: dict(system.figures) for name, system in ours.items()} == expected
    assert all(system.source for system in ours.values())


def test_the_wheel_has_the_published_figures(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    import os

    before = Path.cwd()
    os.chdir(REPO)
    try:
        name = build.build_wheel(str(tmp_path))
    finally:
        os.chdir(before)
    assert "llara_cli/evaluation/published.json" in zipfile.ZipFile(tmp_path / name).namelist()


def test_a_published_mean_is_over_the_same_sets_or_none() -> None:
    whole = LeaderboardEntry("whole", {name: {"nDCG@10": 0.6} for name in ZERO_SHOT})
    partial = LeaderboardEntry("partial", {name: {"nDCG@10": 0.6} for name in ZERO_SHOT[1:]})
    result = result_of((*ZERO_SHOT, "msmarco"))
    table = leaderboard_table(result, [LeaderboardEntry("mine", result["datasets"]), whole, partial])
    assert table is not None
    last = table.rows[-1]
    assert (last.label, list(last.cells)) == ("mean of 13", ["50.00", "60.00", ""])
    fewer = result_of(ZERO_SHOT[1:])
    assert means("beir", fewer["datasets"], partial) == pytest.approx(0.6)
    assert means("beir", result_of(("scifact", "bioasq"))["datasets"], whole) is None


def test_a_cell_without_a_source_stays_empty_and_the_best_is_bold() -> None:
    leaderboard = [
        LeaderboardEntry("mine", {"scifact": {"nDCG@10": 0.7}, "fiqa": {"nDCG@10": 0.3}}),
        LeaderboardEntry("theirs", {"scifact": {"nDCG@10": 0.70001, "R@100": 0.99}}, "a paper"),
    ]
    table = leaderboard_table(result_of(("scifact", "fiqa")), leaderboard)
    assert table is not None
    first, second, _ = table.rows
    assert list(first.cells) == ["70.00", "70.00"]
    assert first.best == {0, 1}  # what looks the same is equally good
    assert list(second.cells) == ["30.00", ""]
    assert second.best == frozenset()  # nobody to be better than
    assert table.notes == ["theirs: a paper"]


def test_nobody_stands_beside_a_set_of_the_users_own(llara: Llara, tmp_path: Path) -> None:
    folder = random_set(tmp_path / "my-own", 0)
    shown = llara("evaluate", folder, *BM25).out
    assert "my-own: bm25" in shown
    assert "LLARA" not in shown


def test_published_figures_are_about_the_usual_split(llara: Llara, tmp_path: Path) -> None:
    test, train = random_set(tmp_path / "a" / "scifact", 0), random_set(tmp_path / "b" / "scifact", 0, split="train")
    assert "76.07" in llara("evaluate", test, *BM25).out
    assert "76.07" not in llara("evaluate", train, "--split", "train", *BM25, "--restart").out


def test_other_models_stand_beside_where_the_data_are_the_same(llara: Llara, tmp_path: Path, tiny_model: Path) -> None:
    folder = random_set(tmp_path / "own", 0)
    dense = llara("evaluate", folder, "--model", tiny_model, "--json").json["datasets"]["own"]["nDCG@10"]
    shown = llara("evaluate", folder, *BM25).out
    assert "own: nDCG@10" in shown
    assert f"{100 * dense:.2f}" in shown
    other = random_set(tmp_path / "changed" / "own", 1)
    assert "own: nDCG@10" not in llara("evaluate", other, *BM25).out


def test_forums_are_shown_below_their_set() -> None:
    forums = {forum: {"nDCG@10": 0.4, "queries": 10} for forum in FORUMS}
    group = {"nDCG@10": 0.4, "queries": 120, "forums": forums}
    result = {
        "benchmark": "beir",
        "model": "m",
        "datasets": {"cqadupstack": group},
        "mean": {"nDCG@10": 0.4, "datasets": 1},
    }
    table = result_table(result)
    assert [row.kind for row in table.rows] == ["plain"] + ["part"] * 12
    assert "  android" in text_of([table])


def text_of(tables: list[ResultTable], width: int = 80) -> str:
    """What the screen shows."""
    screen = Screen(width=width, file=io.StringIO(), force_terminal=False)
    screen.print(drawn(tables))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_screen_holds_all_of_beir(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = result_of((*ZERO_SHOT, "msmarco"))
    names = ("bm25", "a-model-with-a-long-name-of-its-own")
    others = [LeaderboardEntry(name, {dataset: {"nDCG@10": 0.4} for dataset in ZERO_SHOT}) for name in names]
    table = leaderboard_table(result, [LeaderboardEntry("mine", result["datasets"]), *others, *published()[:5]])
    assert table is not None
    shown = text_of([table], columns)
    assert all(len(line.rstrip()) <= columns for line in shown.splitlines())
    assert "…" not in shown
    for cell in ("webis-touche2020", "76.07", "23.90", "78.30", "64.51", "mean of 13"):
        assert cell in shown
    if columns == 60:  # several parts, each with the own column
        assert len(re.findall(r"^scifact +50\.00", shown, re.MULTILINE)) > 1


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        ("nDCG@10", ["nDCG@10"]),
        ("LLARA-passage (re-run)", ["LLARA-", "passage", "(re-run)"]),
        ("bge-en-icl (zero-shot)", ["bge-en-icl", "(zero-shot)"]),
        ("R(rel=2)@1000", ["R(rel=2)@1000"]),
    ],
)
def test_long_headings_are_cut_where_they_may_be(head: str, lines: list[str]) -> None:
    assert wrapped(head).split("\n") == lines


TABLE = ResultTable(
    "a & b", "set", ["x_1", "y|2"], [Row("p", ["1", "2"], frozenset({1})), Row("mean", ["", "3"], kind="total")], ["n"]
)


def test_markdown() -> None:
    assert markdown([TABLE]) == (
        "**a & b**\n\n| set | x_1 | y\\|2 |\n| --- | ---: | ---: |\n| p | 1 | **2** |\n| mean |  | 3 |\n\nn\n"
    )


def test_latex() -> None:
    assert latex([TABLE]).splitlines() == [
        "% a & b", r"\begin{tabular}{lrr}", r"\toprule", r"set & x\_1 & y|2 \\", r"\midrule",
        r"p & 1 & \textbf{2} \\", r"\midrule", r"mean &  & 3 \\", r"\bottomrule", r"\end{tabular}", "% n",
    ]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two of BEIR's sets."""
    for seed, name in enumerate(("scifact", "fiqa")):
        random_set(tmp_path / "sets" / name, seed)
    return tmp_path / "sets"


def test_the_formats_say_the_same(llara: Llara, root: Path) -> None:
    call = ("evaluate", "beir", "--datasets", "scifact,fiqa", "--data-root", root, *BM25)
    result = llara(*call, "--json").json
    assert llara(*call, "--format", "json").json == result
    rows = list(csv.DictReader(io.StringIO(llara(*call, "--format", "csv").out)))
    ours = {(row["dataset"], row["metric"]): float(row["value"]) for row in rows if row["system"] == "bm25"}
    for name, found in result["datasets"].items():
        for metric in ("nDCG@10", "R@100", "MRR@10"):
            assert ours[name, metric] == found[metric]
    assert ours["mean", "nDCG@10"] == pytest.approx(result["mean"]["nDCG@10"])
    (theirs,) = [row for row in rows if row["system"] == "NV-Embed-v1" and row["dataset"] == "fiqa"]
    assert (theirs["value"], theirs["metric"]) == ("0.629", "nDCG@10")
    assert "PaddleNLP" in theirs["source"]
    shown = f"{100 * result['datasets']['scifact']['nDCG@10']:.2f}"
    for name in ("table", "markdown", "latex"):
        text = llara(*call, "--format", name).out
        assert shown in text
        assert "62.90" in text
    assert "| scifact |" in llara(*call, "--format", "markdown").out
    assert r"\begin{tabular}" in llara(*call, "--format", "latex").out


def test_a_format_can_be_a_default(llara: Llara, root: Path, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws/llara.toml").write_text('[evaluate]\nformat = "csv"\n')
    out = llara("evaluate", root / "fiqa", *BM25).out
    assert out.startswith("dataset,system,metric,value,queries,source\n")
