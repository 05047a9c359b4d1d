"""Fine-tuning rows in every format, and what makes one unusable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llara_cli.core.errors import UserError
from llara_cli.data.mined_rows import write_rows
from llara_cli.data.training_rows import TrainingRow, read_training_rows

Write = Callable[[str, str | bytes | Sequence[Mapping[str, Any]]], Path]
Refusal = Callable[[Callable[[], object]], str]
BeirMaker = Callable[..., Path]


def row(query: str, positives: Sequence[str], negatives: Sequence[str] = ()) -> TrainingRow:
    """A row of plain texts, without ids and scores."""
    nameless = (None,) * len(positives), (None,) * len(negatives)
    return TrainingRow(query, tuple(positives), tuple(negatives), *nameless)


def test_flagembedding_rows(write: Write) -> None:
    path = write(
        "a.jsonl",
        [
            {"query": "q", "pos": ["p", "r"], "neg": ["n"], "prompt": "ignored", "type": "normal"},
            {"query": "q", "pos": "p", "neg": []},
            {"query": "", "pos": ["p"], "neg": [" "]},
            {"query": "q", "pos": ["p"], "neg": ["p", "n"], "pos_scores": None},
        ],
    )
    assert list(read_training_rows(path)) == [
        row("q", ["p", "r"], ["n"]),
        row("q", ["p"]),
        row("", ["p"], [" "]),
        row("q", ["p"], ["p", "n"]),
    ]


def test_scores_and_ids_lie_beside_their_passages(write: Write) -> None:
    fields = {"pos_scores": [1], "neg_scores": [0.5, -2], "pos_ids": ["d1"], "neg_ids": [7, None], "query_id": 3}
    (found,) = read_training_rows(write("a.jsonl", [{"query": "q", "pos": ["p"], "neg": ["n", "m"], **fields}]))
    assert (found.positive_scores, found.negative_scores) == ((1.0,), (0.5, -2.0))
    assert (found.query_id, found.positive_ids, found.negative_ids) == ("3", ("d1",), ("7", None))


def test_tevatron_rows(write: Write) -> None:
    positive = {"docid": 4, "title": "T", "text": "p"}
    negatives = [{"docid": "n", "title": None, "text": "x"}, {"text": "y "}]
    fields = {"query_id": 1, "query": "q", "positive_passages": [positive]}
    path = write("a.jsonl.gz", [{**fields, "negative_passages": negatives}, fields])
    assert list(read_training_rows(path)) == [
        TrainingRow("q", ("T p",), ("x", "y"), ("4",), ("n", None), "1"),
        TrainingRow("q", ("T p",), (), ("4",), (), "1"),
    ]


@pytest.mark.parametrize("names", [("anchor", "positive"), ("query", "pos"), ("question", "answer")])
def test_columns_in_every_kind_of_file(write: Write, tmp_path: Path, names: tuple[str, str]) -> None:
    header = [*names, "negative_10", "negative_2", "negative_1"]
    cells = ["q", "p", "n10", "n2", "n1"]
    pq.write_table(pa.table({name: [cell] for name, cell in zip(header, cells, strict=True)}), tmp_path / "a.parquet")
    paths = [
        write("a.csv", ",".join(header) + "\n" + ",".join(cells) + "\n"),
        write("a.tsv", "\t".join(header) + "\n" + "\t".join(cells) + "\n"),
        write("a.jsonl", [dict(zip(header, cells, strict=True))]),
        tmp_path / "a.parquet",
    ]
    for path in paths:
        assert list(read_training_rows(path)) == [row("q", ["p"], ["n1", "n2", "n10"])]


def test_header_lines_and_quotation_marks_of_tables(write: Write) -> None:
    expected = [row("q", ['say "p"'], ["n"])]
    for path in (
        write("a.tsv", '"Anchor"\t"Positive"\tNegative-1\nq\t"say ""p"""\t"n"\n'),
        write("a.csv", '"Anchor","Positive",Negative-1\nq,"say ""p""","n"\n'),
    ):
        told: list[str] = []
        assert list(read_training_rows(path, note=told.append)) == expected
        assert told == [f"{path}: columns: anchor, positive, negative_1"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_mined_rows_keep_the_quotation_marks_of_their_texts(tmp_path: Path, suffix: str) -> None:
    texts = ['"all of it"', 'a "part"', '"', '""', '"""', '"two ""doubled"""', '"a" and "b"', "plain"]
    write_rows(tmp_path / f"a{suffix}", ({"anchor": text, "positive": text} for text in texts))
    assert list(read_training_rows(tmp_path / f"a{suffix}")) == [row(text, [text]) for text in texts]


def test_columns_without_a_negative(write: Write) -> None:
    path = write("a.csv", "anchor,positive,negative,negative_1\nq,p,,n\nq,p,,\n")
    assert list(read_training_rows(path)) == [row("q", ["p"], ["n"]), row("q", ["p"])]
    path = write("b.jsonl", [{"anchor": "q", "positive": "p", "negative": None}])
    assert list(read_training_rows(path)) == [row("q", ["p"])]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_beir_folder_gives_one_row_a_query(beir: BeirMaker, ending: str) -> None:
    assert list(read_training_rows(beir(ending=ending))) == [
        TrainingRow("ask b", ("text 0", "T2 text 2"), (), ("d0", "d2"), (), "b"),
        TrainingRow("ask a", ("T1 text 1",), (), ("d1",), (), "a"),
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("a\td9\t1\n", "tiny/qrels/train.tsv:2: 'd9' is not in tiny/corpus.jsonl"),
        ("a\td1\t1\nz\td1\t1\n", "tiny/qrels/train.tsv:3: 'z' is not in tiny/queries.jsonl"),
        ("a\td1\t0\n", "tiny: no training rows in it"),
        ("a\td1\n", "tiny/qrels/train.tsv:2: not a judgment"),
    ],
)
def test_broken_beir_folders(beir: BeirMaker, refusal: Refusal, lines: str, complaint: str) -> None:
    folder = beir(qrels={"train": lines})
    assert refusal(lambda: read_training_rows(folder)).startswith(complaint)


def test_folders_that_cannot_train(beir: BeirMaker, refusal: Refusal, tmp_path: Path) -> None:
    folder = beir(qrels={"test": "a\td1\t1\n"})
    assert refusal(lambda: read_training_rows(folder)) == (
        "tiny has no split 'train' (qrels/train.tsv): there are test"
    )
    (tmp_path / "other").mkdir()
    assert "other is not a BEIR folder: corpus.jsonl is missing" in refusal(
        lambda: read_training_rows(tmp_path / "other")
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"pos": ["p"]}, 'no "query" field (nor anchor, question): found pos'),
        ({"query": 3, "pos": ["p"]}, '"query" must be a string, not a number'),
        ({"query": None, "pos": ["p"]}, '"query" is null'),
        ({"query": ["q"], "positive_passages": [{"text": "p"}]}, '"query" must be a string, not a list'),
        ({"query": "q"}, 'no "pos" field (nor positive, answer, positive_passages): found query'),
        ({"query": "q", "pos": None}, '"pos" is null'),
        ({"query": "q", "pos": []}, '"pos" is empty'),
        ({"query": "q", "positive": ""}, '"positive" is empty'),
        ({"query": "q", "positive": " "}, '"positive" contains a passage without text'),
        ({"query": "q", "pos": ["p", " \n"]}, '"pos" contains a passage without text'),
        ({"query": "q", "pos": [""]}, '"pos" contains a passage without text'),
        ({"query": "q", "positive_passages": [{"text": " "}]}, '"positive_passages" contains a passage without text'),
        ({"query": "q", "positive_passages": []}, '"positive_passages" is empty'),
        ({"query": "q", "positive_passages": None}, '"positive_passages" is empty'),
        ({"query": "q", "positive_passages": ["p"]}, '"positive_passages" must be a list of objects'),
        ({"query": "q", "positive_passages": [{"docid": "1"}]}, 'no "text" field: found docid'),
        ({"query": "q", "pos": ["p", 3]}, '"pos" contains a number: every passage must be a string'),
        ({"query": "q", "pos": {"a": 1}}, '"pos" must be a string or a list of strings, not an object'),
        ({"query": "q", "pos": ["p"], "neg": [None]}, '"neg" contains null'),
        ({"query": "q", "pos": ["p"], "negative_1": 3}, '"negative_1" must be a string or a list of strings'),
        ({"query": "q", "pos": ["p"], "pos_scores": [1, 2]}, '"pos_scores" must be a list of 1 numbers'),
        ({"query": "q", "pos": ["p"], "pos_scores": 1.0}, '"pos_scores" must be a list of 1 numbers'),
        (
            {"query": "q", "pos": ["p"], "pos_scores": ["1"]},
            "\"pos_scores\" contains '1': every score must be a finite",
        ),
        ({"query": "q", "pos": ["p"], "pos_scores": [True]}, '"pos_scores" contains True'),
        ({"query": "q", "pos": ["p"], "pos_scores": [float("nan")]}, '"pos_scores" contains nan'),
        ({"query": "q", "pos": ["p"], "pos_scores": [10**400]}, '"pos_scores" contains 1000000'),
        ({"query": "q", "pos": ["p"], "pos_scores": [-1e39]}, '"pos_scores" contains -1e+39'),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": []}, '"neg_scores" must be a list of 1 numbers'),
        ({"query": "q", "pos": ["p"], "pos_ids": ["1", "2"]}, '"pos_ids" must be a list of 1 ids'),
        ({"query": "q", "pos": ["p"], "pos_ids": [[]]}, '"pos_ids" must be a string or a whole number, not a list'),
        ({"query": "q", "pos": ["p"], "query_id": 1.5}, '"query_id" must be a string or a whole number'),
    ],
)
def test_a_row_that_cannot_train_is_told(
    write: Write, refusal: Refusal, fields: dict[str, Any], complaint: str
) -> None:
    path = write("train.jsonl", [{"query": "q", "pos": ["p"]}, fields])
    assert refusal(lambda: read_training_rows(path)).startswith(f"train.jsonl:2: {complaint}")


def test_a_row_without_the_scores_that_are_wanted_is_told(write: Write, refusal: Refusal, beir: Any) -> None:
    scored = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [0]}
    alone = {"query": "q", "pos": ["p"], "pos_scores": [1]}
    path = write("train.jsonl", [scored, alone, {**scored, "neg_scores": None}])
    assert refusal(lambda: read_training_rows(path, scored=True)) == (
        "train.jsonl:3: no pos_scores and neg_scores, which `distillation` needs"
    )
    assert "a BEIR folder has no pos_scores" in refusal(lambda: read_training_rows(beir(), scored=True))


def test_files_without_rows(write: Write, refusal: Refusal, tmp_path: Path) -> None:
    empty = write("a.jsonl", "\n")
    assert refusal(lambda: read_training_rows(empty)) == "a.jsonl: no training rows in it"
    header = write("a.csv", "anchor,positive\n")
    assert refusal(lambda: read_training_rows(header)) == "a.csv: no training rows in it"
    assert refusal(lambda: read_training_rows(tmp_path / "no.jsonl")) == "no such file: no.jsonl"


@pytest.mark.parametrize(
    ("name", "rows", "negatives", "score"),
    [("toy_finetune_data", 11, 30, 13.734375), ("msmarco_example", 10, 25, 96.6875), ("nq_example", 10, 100, 98.625)],
)
def test_sample_rows_of_the_authors(data_root: Path, name: str, rows: int, negatives: int, score: float) -> None:
    found = list(read_training_rows(data_root / "llara-toy" / f"{name}.jsonl"))
    assert (len(found), len(found[0].negatives), found[0].positive_scores) == (rows, negatives, (score,))


NAMES = ["query", "anchor", "pos", "positive", "neg", "negative_1", "positive_passages", "negative_passages"]
NAMES += ["pos_scores", "neg_scores", "pos_ids", "query_id"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["docid", "title", "text"]), inner),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_whatever_a_row_holds_it_is_sound_or_told(write: Write, fields: dict[str, Any]) -> None:
    path = write("a.jsonl", [fields])
    found = row_or_message(path)
    if isinstance(found, str):
        assert found.startswith(f"{path}:1: ")
        assert found.isprintable()
    else:
        assert len(found.positives) == len(found.positive_ids) > 0
        assert len(found.negatives) == len(found.negative_ids)
        assert all(isinstance(text, str) for text in (found.query, *found.positives, *found.negatives))


def row_or_message(path: Path) -> TrainingRow | str:
    try:
        return next(read_training_rows(path))
    except UserError as error:
        return str(error)
