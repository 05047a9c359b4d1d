"""Runs and judgments on disk."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llara_cli.core.errors import UserError
from llara_cli.data.runs import (
    RankedQueries,
    read_qrels,
    read_ranked_queries,
    read_run,
    save_run,
    write_jsonl_run,
    write_trec_run,
)

WRITERS = pytest.mark.parametrize("write", [write_trec_run, write_jsonl_run])


def saved(folder: Path, text: str) -> Path:
    """A file of that text."""
    path = folder / "file"
    path.write_text(text, encoding="utf-8")
    return path


def test_trec_run_has_its_six_columns(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    write_trec_run(path, [("q1", [("d2", 0.75), ("d1", 0.5)]), ("q2", [("d3", -1.0)])], "my model")
    assert path.read_text() == "q1 Q0 d2 1 0.75 my-model\nq1 Q0 d1 2 0.5 my-model\nq2 Q0 d3 1 -1.0 my-model\n"


def test_jsonl_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_jsonl_run(path, [("q é", [("d 2", 0.75), ("d1", 0.5)]), ("q2", [])], "tag")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"query_id": "q é", "hits": [{"id": "d 2", "rank": 1, "score": 0.75}, {"id": "d1", "rank": 2, "score": 0.5}]},
        {"query_id": "q2", "hits": []},
    ]


def test_scores_read_back_as_the_same_float32(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([random.standard_normal(500), random.standard_normal(500) * 1e-7, [0, 1e-30, 3e8]])
    single = scores.astype(np.float32)
    path = tmp_path / "run"
    write_trec_run(path, [("q", [(str(row), score) for row, score in enumerate(single.tolist())])], "t")
    back = np.array(list(read_run(path)["q"].values()))
    np.testing.assert_array_equal(back.astype(np.float32), single)
    assert "0.7 " in saved(tmp_path, _line(np.float32(0.7), tmp_path)).read_text()
    write_trec_run(path, [("q", [("a", 1 / 3)])], "t")
    assert read_run(path)["q"]["a"] == 1 / 3


def _line(score: np.float32, folder: Path) -> str:
    write_trec_run(folder / "line", [("q", [("d", float(score))])], "t")
    return (folder / "line").read_text()


@WRITERS
def test_a_run_is_there_only_when_complete(write: type, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("the old one")

    def broken() -> Iterator[tuple[str, list[tuple[str, float]]]]:
        yield "q", [("d", 1.0)]
        assert path.read_text() == "the old one"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(path, broken(), "tag")
    assert path.read_text() == "the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@WRITERS
def test_nowhere_to_write(write: type, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "no" / "run", [], "tag")


@pytest.mark.parametrize(
    "answers",
    [[("q 1", [("d", 1.0)])], [("q", [("d\t1", 1.0)])], [("q", [("d\u00a01", 1.0)])], [("", [("d", 1.0)])]],
)
def test_ids_that_a_trec_run_cannot_hold(answers: RankedQueries, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"white space.*jsonl"):
        write_trec_run(tmp_path / "run", answers, "tag")
    assert list(tmp_path.iterdir()) == []


def test_reads_what_it_writes(tmp_path: Path) -> None:
    answers = [("q1", [("d2", 0.75), ("d1", 0.5)]), ("q2", [("d3", -1.0)])]
    write_trec_run(tmp_path / "run", answers, "tag")
    assert read_run(tmp_path / "run") == {query: dict(hits) for query, hits in answers}


def test_reads_others_runs(tmp_path: Path) -> None:
    """Tabs, blank lines, a byte-order mark, Windows' line ends, ranks from 0, queries not together, compressed."""
    text = "\ufeffq1\tQ0\td1\t0\t1e-3\tx\r\n\r\nq2 Q0 d1 0 5 x\r\nq1   0 d2 1 -2 x\n"
    path = tmp_path / "run.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_run(path) == {"q1": {"d1": 0.001, "d2": -2.0}, "q2": {"d1": 5.0}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 2 0.5", "5 columns"),
        ("q Q0 d 2 0.5 my tag", "7 columns"),
        ("q Q0 d 2 high tag", "'high'"),
        ("q Q0 d 2 nan tag", "'nan'"),
        ("q Q0 d1 2 0.5 tag", "'d1' twice"),
    ],
)
def test_broken_runs(line: str, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, f"q Q0 d1 1 0.9 tag\n{line}\n")
    with pytest.raises(UserError, match=rf"file:2: .*{message}"):
        read_run(path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_run(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no hit"):
        read_run(saved(tmp_path, text))


@pytest.mark.parametrize("read", [read_run, read_qrels])
def test_missing_files(read: type, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "q1 0 d1 2\nq1\t0\td2\t0\n\nq2  Q0  d1  -1\n",
        "q1\td1\t2\nq1\td2\t0\nq1\td2\t0\nq2\td1\t-1\n",
    ],
    ids=["beir", "no header", "trec", "said twice"],
)
def test_judgments(text: str, tmp_path: Path) -> None:
    assert read_qrels(saved(tmp_path, text)) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("query-id\tcorpus-id\tscore\nq1\td1\n", "file:2: "),
        ("query-id\tcorpus-id\tscore\nq1\td1\tgood\n", "file:2: .*'good'"),
        ("q1 0 d1 1\nq1 0 d2 1.5\n", "file:2: .*'1.5'"),
        ("q1 0 d1 1\nq1 0 d2 1 more\n", "file:2: "),
        ("q1 0 d1 1\n\nq1 0 d1 2\n", "file:3: .*'d1' with grade 1 before, with 2 here"),
        ("", "file: "),
        ("query-id\tcorpus-id\tscore\n", "file: "),
    ],
)
def test_broken_judgments(text: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=where):
        read_qrels(saved(tmp_path, text))


def test_a_run_is_kept_as_trec_where_it_can_be(tmp_path: Path) -> None:
    answers = [("q1", [("d2", 0.75), ("d1", 0.5)]), ("q2", [("d3", -1.0)])]
    (tmp_path / "run.jsonl").write_text("of before")
    path = save_run(tmp_path, "run", iter(answers), "tag")
    assert [file.name for file in tmp_path.iterdir()] == ["run.trec"]
    assert list(read_ranked_queries(path)) == answers


def test_and_as_json_lines_from_the_first_id_with_white_space_on(tmp_path: Path) -> None:
    answers = [
        ("q1", [("d2", 0.75)]),
        ("q2", [("d3", 0.5), ("d 4", 0.25)]),
        ("q 3", [("d1", 1.0)]),
        ("q4", [("a", 2.0)]),
    ]
    path = save_run(tmp_path, "run", iter(answers), "tag")
    assert [file.name for file in tmp_path.iterdir()] == ["run.jsonl"]
    assert list(read_ranked_queries(path)) == answers
    assert read_run(path) == {query: dict(hits) for query, hits in answers}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"hits": []}', 'no "query_id"'),
        ('{"query_id": "q"}', '"hits" must be a list'),
        ('{"query_id": "q", "hits": [3]}', '"score" must be a number'),
        ('{"query_id": "q", "hits": [{"id": "d", "score": "x"}]}', '"score" must be a number'),
        ('{"query_id": "q", "hits": [{"id": "d", "score": NaN}]}', '"score" must be a number'),
        ('{"query_id": "q", "hits": [{"id": "d", "score": true}]}', '"score" must be a number, not True'),
        ('{"query_id": "q", "hits": [{"id": "d", "score": 1' + "0" * 400 + "}]}", '"score" must be a number, not 1000'),
        ('{"query_id": "q", "hits": [{"score": 1}]}', 'no "id"'),
        ('{"query_id": "p", "hits": [{"id": "d", "score": 1}]}', "'d' twice"),
        ("q Q0 d 1 0.5 tag", "not JSON"),
    ],
)
def test_broken_json_runs(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"query_id": "p", "hits": [{"id": "d", "rank": 1, "score": 0.5}]}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"run.jsonl:2: .*{message}"):
        read_run(path)
