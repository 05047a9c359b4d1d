"""Lines and records: every format, every compression, and every way in which a file can be broken."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llara_cli.core.errors import UserError
from llara_cli.data.records import Record, read_lines, read_records
from llara_cli.data.text_files import kind

Write = Callable[[str, str | bytes | Sequence[Mapping[str, Any]]], Path]
Refusal = Callable[[Callable[[], object]], str]
ENDINGS = ["", ".gz", ".bz2", ".zst"]
Compress = Callable[[bytes], bytes]
COMPRESS: dict[str, Compress] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("corpus.jsonl", (".jsonl", "")),
        ("Corpus.JSONL.GZ", (".jsonl", ".gz")),
        ("wiki_00", ("", "")),
        ("wiki_00.bz2", ("", ".bz2")),
        ("enwiki-20240101-pages-articles1.xml-p1p41242.bz2", (".xml", ".bz2")),
        ("v1.2.tsv", (".tsv", "")),
    ],
)
def test_kind_is_told_by_the_name(name: str, expected: tuple[str, str]) -> None:
    assert kind(Path("some.dir") / name) == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_lines_are_numbered_and_the_byte_order_mark_is_dropped(write: Write, ending: str) -> None:
    path = write(f"a.txt{ending}", b"\xef\xbb\xbfone\r\n\nth\xe2\x80\xa8ree\r\rx\nlast")
    assert list(read_lines(path)) == [(1, "one"), (2, ""), (3, "th\u2028ree\r\rx"), (4, "last")]


def test_files_put_together_may_each_have_had_a_byte_order_mark(write: Write) -> None:
    path = write("a.tsv", b"\xef\xbb\xbfid\tt\n1\tx\n\xef\xbb\xbf2\ty\xef\xbb\xbf\n")
    assert [record.fields for record in read_records(path)] == [{"id": "1", "t": "x"}, {"id": "2", "t": "y\ufeff"}]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wrong_encoding_names_line_and_byte(write: Write, refusal: Refusal, ending: str) -> None:
    path = write(f"a.jsonl{ending}", b'{"a": 1}\n{"a": "caf\xe9"}\n')
    message = refusal(lambda: read_records(path))
    assert message.startswith(f"a.jsonl{ending}:2: not UTF-8 (byte 0xE9 at byte 11 of the line)")
    assert "iconv" in message


@pytest.mark.parametrize("ending", ENDINGS[1:])
@pytest.mark.parametrize("damage", ["cut", "not compressed", "empty but for the name"])
def test_broken_compression_names_the_file(tmp_path: Path, refusal: Refusal, ending: str, damage: str) -> None:
    lines = b"".join(b'{"a": %d}\n' % number for number in range(5000))
    path = tmp_path / f"a.jsonl{ending}"
    whole = COMPRESS[ending](lines)
    path.write_bytes({"cut": whole[: len(whole) // 2], "not compressed": lines}.get(damage, whole[:3]))
    message = refusal(lambda: read_records(path))
    if damage == "not compressed":
        assert message.startswith(
            f"a.jsonl{ending}: not {ending} data, whatever its name says: rename it without {ending}"
        )
    else:
        assert message.startswith(f"a.jsonl{ending}: broken or cut-off {ending} data (")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.bz2"])
@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_compressed_data_are_known_whatever_their_name(tmp_path: Path, ending: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESS[ending](b'{"a": 1}\n{"a": 2}\n'))
    assert list(read_lines(path)) == [(1, '{"a": 1}'), (2, '{"a": 2}')]
    path.write_bytes(COMPRESS[ending](b"".join(b"%d\n" % number for number in range(50_000)))[:-20])
    with pytest.raises(UserError, match=f"broken or cut-off {ending} data"):
        list(read_lines(path))


def test_text_that_begins_like_compressed_data(write: Write) -> None:
    assert list(read_lines(write("a.txt", "BZh9 is a code\n"))) == [(1, "BZh9 is a code")]


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_other_encodings_are_told_with_the_command_that_converts_them(
    write: Write, refusal: Refusal, encoding: str, told: str, ending: str
) -> None:
    path = write(f"a.jsonl{ending}", '{"a": "café"}\n'.encode(encoding))
    assert refusal(lambda: read_records(path)) == (
        f"a.jsonl{ending}: {told}, not UTF-8: convert the file: iconv -f {told} -t UTF-8"
    )


def test_archives_are_told(write: Write, refusal: Refusal) -> None:
    assert (
        refusal(lambda: read_lines(write("a.txt", b"PK\x03\x04x"))) == "a.txt: a zip archive, not text: unpack it first"
    )
    assert refusal(lambda: read_lines(write("a.txt", lzma.compress(b"x")))).startswith("a.txt: xz data, not text")


def test_flipped_bytes_inside_gzip_are_told(tmp_path: Path, refusal: Refusal) -> None:
    data = bytearray(gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(2000))))
    data[200:240] = b"\xff" * 40
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    assert refusal(lambda: read_records(tmp_path / "a.jsonl.gz")).startswith("a.jsonl.gz:")


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_files_appended_to_each_other_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](b'{"a": 1}\n') + COMPRESS[ending](b'{"a"') + COMPRESS[ending](b": 2}"))
    assert [record.fields for record in read_records(path)] == [{"a": 1}, {"a": 2}]


def test_large_zstd_frames_stream_through_small_buffers(write: Write) -> None:
    rows = [{"a": i, "b": "word " * (i % 97)} for i in range(20_000)]
    assert [record.fields for record in read_records(write("a.jsonl.zst", rows))] == rows


def test_zst_without_its_library_names_the_extra(
    write: Write, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl.zst", "{}")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install 'llara[zstd]'" in refusal(lambda: read_records(path))


def test_json_lines_skip_blank_lines_and_keep_their_numbers(write: Write) -> None:
    records = list(read_records(write("a.jsonl", '\n{"a": 1}\n  \t\n{"a": "\\ud83d\\ude00"}')))
    assert [record.fields for record in records] == [{"a": 1}, {"a": "😀"}]
    assert [record.where.rpartition(":")[2] for record in records] == ["2", "4"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
        ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "not a JSON object but a list"),
        ('"a"', "not a JSON object but a string"),
        ("null", "not a JSON object but null"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
        ("[" * 200_000, "not JSON: "),
        ('{"a": "\\ud83d"}', "not text: half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_object_is_told(write: Write, refusal: Refusal, line: str, complaint: str) -> None:
    path = write("a.jsonl", f'{{"a": 0}}\n\n{line}\n')
    assert refusal(lambda: read_records(path)).startswith(f"a.jsonl:3: {complaint}")


def test_a_field_that_is_there_twice_is_told_where_it_is_read(write: Write) -> None:
    (record,) = read_records(write("a.jsonl", '{"b": {"c": 1, "c": 2}, "a": "x", "a": "x", "d": "y"}'))
    assert (record.string("d"), record.name_of("e", "d"), list(record.fields)) == ("y", "d", ["b", "a", "d"])
    for read in (record.string, record.optional_string, record.name_of, record.fields.get):
        with pytest.raises(UserError, match=r"a\.jsonl:1: the field 'a' occurs twice: which one counts\?"):
            read("a")


def test_a_name_that_is_there_twice_deeper_in_a_row_is_not_our_business(write: Write) -> None:
    (record,) = read_records(write("a.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}'))
    assert record.fields == {"a": 1, "b": {"c": 2}}


def test_csv_cells_may_span_lines(write: Write) -> None:
    records = list(read_records(write("a.csv", 'id,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,x\r\n')))
    assert [record.fields for record in records] == [
        {"id": "1", "text": 'two\nlines, "quoted"'},
        {"id": "2", "text": "x"},
    ]
    assert [record.where.rpartition(":")[2] for record in records] == ["2", "5"]


def test_csv_cells_may_be_longer_than_the_library_allows_by_itself(write: Write) -> None:
    (record,) = read_records(write("a.csv", f"text\n{'x' * 200_000}\n"))
    assert len(record.fields["text"]) == 200_000


def test_tsv_takes_marks_that_quote_no_whole_cell_as_text(write: Write) -> None:
    records = read_records(write("a.tsv", 'anchor\tpositive\n"a b" c\t"\n\td\n'))
    assert [record.fields for record in records] == [
        {"anchor": '"a b" c', "positive": '"'},
        {"anchor": "", "positive": "d"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: 1 columns, but the header line has 2"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "a.tsv:2: 3 columns, but the header line has 2"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: the header line needs a different name for every column"),
        ("a.csv", 'a,b\n1,"x\n2,y\n', "a.csv:2: broken CSV: unexpected end of data"),
        ("a.csv", 'a,b\n1,2\n1,"x"y\n', "a.csv:3: broken CSV: "),
    ],
)
def test_broken_tables_name_their_line(write: Write, refusal: Refusal, name: str, content: str, complaint: str) -> None:
    path = write(name, content)
    assert refusal(lambda: read_records(path)).startswith(complaint)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
def test_an_empty_file_has_no_records(write: Write, name: str) -> None:
    assert list(read_records(write(name, ""))) == []


def test_parquet_rows_are_numbered_across_batches(tmp_path: Path) -> None:
    rows = [{"id": i, "pos": [f"p{i}"], "title": None} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    records = list(read_records(tmp_path / "a.parquet"))
    assert [record.fields for record in records] == rows
    assert records[2999].where == f"{tmp_path / 'a.parquet'}: row 3000"


def test_parquet_columns_nobody_asked_for_are_there_but_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "vector": [[0.5, 0.5]]}), tmp_path / "a.parquet")
    (record,) = read_records(tmp_path / "a.parquet", columns=["id", "text"])
    assert record.fields == {"id": "1", "vector": None}


def test_broken_parquet_names_file_and_row(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "a.parquet"
    latin = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": latin}), path)
    assert refusal(lambda: read_records(path)) == "a.parquet: row 2: not UTF-8 (byte 0xE9)"
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal(lambda: read_records(path)).startswith("a.parquet: broken parquet file after row 0: ")
    path.write_bytes(b"")
    assert refusal(lambda: read_records(path)).startswith("a.parquet: broken parquet file after row 0: ")


def test_parquet_that_no_python_value_can_hold_or_that_names_a_column_twice(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"], "when": pa.array([2**60], pa.timestamp("us"))}), path)
    assert refusal(lambda: read_records(path)).startswith("a.parquet: broken parquet file after row 0: ")
    pq.write_table(pa.table([["1"], ["a"], ["b"]], names=["id", "text", "text"]), path)
    assert refusal(lambda: read_records(path)) == "a.parquet: two columns have one name: id, text, text"


def test_what_cannot_be_read_at_all(tmp_path: Path, write: Write, refusal: Refusal) -> None:
    assert refusal(lambda: read_records(tmp_path / "no.jsonl")) == "no such file: no.jsonl"
    assert refusal(lambda: read_records(tmp_path / "no.parquet")) == "no such file: no.parquet"
    assert refusal(lambda: read_lines(tmp_path / "no.txt")) == "no such file: no.txt"
    unknown = refusal(lambda: read_records(write("a.docx", "")))
    assert unknown.startswith("a.docx: unknown kind of file: known are .jsonl")
    assert "unknown kind" in refusal(lambda: read_records(write("a.parquet.gz", "")))
    (tmp_path / "b.jsonl").mkdir()
    assert refusal(lambda: read_records(tmp_path / "b.jsonl")).endswith("b.jsonl is a folder: name a file in it")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3), max_size=8),
    ending=st.sampled_from(ENDINGS),
    escaped=st.booleans(),
)
def test_whatever_json_writes_is_read_again(
    write: Write, rows: list[dict[str, str | int | None]], ending: str, escaped: bool
) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    assert [record.fields for record in read_records(write(f"a.jsonl{ending}", lines))] == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=60) | st.text(alphabet='{}[]",:\n\t\r a1\\u\x00', max_size=60).map(str.encode),
    suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"]),
    ending=st.sampled_from(ENDINGS),
    compressed=st.booleans(),
)
def test_whatever_is_in_a_file_the_error_is_the_users_and_names_it(
    tmp_path: Path, content: bytes, suffix: str, ending: str, compressed: bool
) -> None:
    path = tmp_path / f"a{suffix}{ending}"
    path.write_bytes(COMPRESS.get(ending, bytes)(content) if compressed else content)
    outcome = records_or_message(path)
    if isinstance(outcome, str):
        assert outcome.startswith(str(path))
        assert outcome.isprintable(), "one line, nothing that could upset a terminal"
    else:
        assert all(record.where.startswith(str(path)) for record in outcome)


def records_or_message(path: Path) -> list[Record] | str:
    try:
        return list(read_records(path))
    except UserError as error:
        return str(error)
