"""Documents to encode: every layout they come in, and what makes one unusable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llara_cli.core.errors import UserError
from llara_cli.data.beir import BeirFolder, is_beir_folder
from llara_cli.data.documents import Document, read_documents
from llara_cli.data.qrels import Judgment, read_qrels
from llara_cli.data.seen_ids import SeenIds

Write = Callable[[str, str | bytes | Sequence[Mapping[str, Any]]], Path]
Refusal = Callable[[Callable[[], object]], str]
BeirMaker = Callable[..., Path]


def test_passage_is_title_and_text_stripped() -> None:
    assert Document("1", "A title", "a text ").passage == "A title a text"
    assert Document("1", "", " text").passage == "text"
    assert Document("1", "", "").passage == ""


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_beir_corpus_and_queries(write: Write, ending: str) -> None:
    corpus = write(
        f"corpus.jsonl{ending}",
        [
            {"_id": "d1", "title": "T", "text": "x", "metadata": {"a": 1}},
            {"_id": "d2", "title": None, "text": ""},
            {"_id": "d3", "text": "no title"},
        ],
    )
    assert list(read_documents(corpus)) == [
        Document("d1", "T", "x"),
        Document("d2", "", ""),
        Document("d3", "", "no title"),
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 7, "contents": "c"}, Document("7", "", "c")),
        ({"docid": "a b", "title": "t", "text": "c"}, Document("a b", "t", "c")),
        ({"query_id": 0, "query": "q"}, Document("0", "", "q")),
        ({"_id": None, "id": "x", "text": None, "contents": "c"}, Document("x", "", "c")),
    ],
)
def test_field_names_of_other_tools(write: Write, row: dict[str, Any], expected: Document) -> None:
    assert list(read_documents(write("a.jsonl", [row]))) == [expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('1\tWhat is "x"?\n2\t\n', [Document("1", "", 'What is "x"?'), Document("2", "", "")]),
        ("d\tTitle\ttext\n", [Document("d", "Title", "text")]),
        ("D1\thttp://x.org\tTitle\tbody\n", [Document("D1", "Title", "body")]),
        ("id\ttext\ttitle\n1\tx\tT\n", [Document("1", "T", "x")]),
        ("qid\tquery\n\n1\tx\n", [Document("1", "", "x")]),
        ("1\tid\n2\ttext\n", [Document("1", "", "id"), Document("2", "", "text")]),
    ],
)
def test_tsv_with_and_without_header(write: Write, content: str, expected: list[Document]) -> None:
    assert list(read_documents(write("collection.tsv", content))) == expected
    assert list(read_documents(write("collection.tsv.gz", content))) == expected


@pytest.mark.parametrize(
    ("content", "expected", "columns"),
    [
        # DPR's psgs_w100.tsv: a bare header line, texts in quotation marks
        (
            'id\ttext\ttitle\n1\t"""Aaron"" ( or ; ""Ahärôn"") is a prophet"\tAaron\n2\t"plain"\t"A ""B"""\n',
            [Document("1", "Aaron", '"Aaron" ( or ; "Ahärôn") is a prophet'), Document("2", 'A "B"', "plain")],
            "id, title, text",
        ),
        ('"id"\t"text"\n"1"\t"a"\n2\tb\n', [Document("1", "", "a"), Document("2", "", "b")], "id, text"),
        ("Document ID\tDocument\n1\tx\n", [Document("1", "", "x")], "document_id, document"),
        ("url\tPassage-ID\tsentence\n?\t1\tx\n", [Document("1", "", "x")], "passage_id, sentence"),
        # marks that are not around a whole cell, or not doubled inside it, are text
        (
            'id\ttext\n1\t"a" and "b"\n2\t"a\n3\t"\n4\ta "b"\n5\t""\n',
            [Document(str(n), "", t) for n, t in enumerate(['"a" and "b"', '"a', '"', 'a "b"', ""], 1)],
            "id, text",
        ),
        # MS MARCO's collection.tsv has no header line, and quotes nothing
        (
            '0\tThe "presence" of "\n1\t"Essay"\n2\t"He said ""no"""\n',
            [
                Document("0", "", 'The "presence" of "'),
                Document("1", "", '"Essay"'),
                Document("2", "", '"He said ""no"""'),
            ],
            "id, text",
        ),
        ('"d1"\t"one"\n"d2"\ttwo\n', [Document("d1", "", "one"), Document("d2", "", "two")], "id, text"),
    ],
)
def test_header_lines_and_quotation_marks_of_a_tsv(
    write: Write, content: str, expected: list[Document], columns: str
) -> None:
    path, told = write("a.tsv", content), list[str]()
    assert list(read_documents(path, told.append)) == expected
    assert told == [f"{path}: columns: {columns}"]


@pytest.mark.parametrize(
    "content",
    [
        "key\tvalue\n17\tHello there\n",
        "docid\tabstract\n17\tHello there\n",
        "my_id\ttext\nd17\tHello there\n",
        '"key"\t"value"\n"17"\t"Hello"\n',
        "Passage Number\tPassage Text\n17\tHello there.\n",
        "Doc No.\tFull Text\n17\tHello there.\n",
        "ID (int)\tText (string)\n17\tHello there.\n",
        "#id\ttext\n17\tHello there.\n",
        "id_1\ttext_1\n17\tHello there.\n",
        "title\ttext\nRiver\twater\n",
    ],
)
def test_a_header_line_of_unknown_names_is_no_document(write: Write, refusal: Refusal, content: str) -> None:
    message = refusal(lambda: read_documents(write("a.tsv", content)))
    assert message.startswith("a.tsv:1: it seems to be a header line, but names no column of ids (_id, id, docid")
    names = content.splitlines()[0].replace('"', "").replace(" ", "_").lower().split("\t")
    assert f"found {', '.join(names)};" in message


@pytest.mark.parametrize(
    "content",
    [
        "1\tdocument\n2\twhat is a query\n",
        "doc 1\tThe text\ndoc 2\tof two lines.\n",
        "passage_1\tTitle\tSummary\npassage_2\tGlaciers\tCaves are formed there.\n",
        "D1\thttp://x.org\tTitle page\tbody\nD2\thttp://x.org\tTwo\tbody is\n",
        "Paris\tA text about Paris\nBerlin\tBerlin.\n",
    ],
)
def test_words_of_header_lines_in_documents_are_documents(write: Write, content: str) -> None:
    found = [document.id for document in read_documents(write("a.tsv", content))]
    assert found == [line.split("\t")[0] for line in content.splitlines()]


def test_words_alone_are_documents(write: Write) -> None:
    path = write("a.tsv", "apple\tred\npear\tgreen\n")
    assert [document.id for document in read_documents(path)] == ["apple", "pear"]


def test_csv_and_parquet_have_the_same_names(write: Write, tmp_path: Path) -> None:
    told: list[str] = []
    path = write("a.csv", '"_ID",Title,"text"\n1,T,x\n2,T,"a ""b"","\n')
    assert list(read_documents(path, told.append)) == [Document("1", "T", "x"), Document("2", "T", 'a "b",')]
    assert told == [f"{path}: columns: _id, title, text"]
    table = pa.table({"docid": [1, 2], "text": ["x", "y"], "title": [None, "T"], "vector": [[0.0], [1.0]]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet")) == [Document("1", "", "x"), Document("2", "T", "y")]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"_id": "1", "body_text": "x"},
            'no "text" field (nor contents, query, passage, body, document, content, doc,',
        ),
        ({"_id": "1", "text": None}, '"text" is null'),
        ({"_id": "1", "text": 5}, '"text" must be a string, not a number'),
        ({"_id": "1", "text": "x", "title": ["t"]}, '"title" must be a string, not a list'),
        ({"text": "x"}, 'no "_id" field (nor id, docid'),
        ({"_id": "", "text": "x"}, '"_id" is empty'),
        ({"_id": " ", "text": "x"}, '"_id" is empty'),
        ({"_id": None, "text": "x"}, '"_id" is null'),
        ({"_id": 1.5, "text": "x"}, '"_id" must be a string or a whole number, not 1.5'),
        ({"_id": True, "text": "x"}, '"_id" must be a string or a whole number, not True'),
        ({"_id": "a\tb", "text": "x"}, "\"_id\" 'a\\tb' holds a line break, a tab"),
        ({"_id": "a\nb", "text": "x"}, "\"_id\" 'a\\nb' holds a line break, a tab"),
        ({"_id": "a\u2028b", "text": "x"}, "\"_id\" 'a\\u2028b' holds a line break, a tab"),
        ({"_id": "ok", "text": "x"}, "the id 'ok' is not unique: corpus.jsonl:1 has it too"),
        ({}, 'no "_id" field'),
        (
            {"a\nb\x1b[2J": 1},
            'no "_id" field (nor id, docid, doc_id, query_id, qid, pid, passage_id, document_id, corpus_id, docno): '
            "found a b [2J",
        ),
    ],
)
def test_a_row_that_is_no_document_is_told(write: Write, refusal: Refusal, row: dict[str, Any], complaint: str) -> None:
    path = write("corpus.jsonl", [{"_id": "ok", "text": "x"}, {"_id": 2, "text": "y"}, row])
    assert refusal(lambda: read_documents(path)).startswith(f"corpus.jsonl:3: {complaint}")


def test_equal_ids_of_different_types_are_duplicates(write: Write, refusal: Refusal) -> None:
    path = write("corpus.jsonl", [{"_id": "1", "text": "x"}, {"_id": 1, "text": "y"}])
    assert refusal(lambda: read_documents(path)) == (
        "corpus.jsonl:2: the id '1' is not unique: corpus.jsonl:1 has it too"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1\ta\n2\tb\tc\n", "a.tsv:2: 3 columns, but the first line has 2"),
        ("only one\n", "a.tsv:1: 1 columns, but it must be id<TAB>text"),
        ("1\ta\n\t\n", 'a.tsv:2: "id" is empty'),
        ("1\ta\n1\tb\n", "a.tsv:2: the id '1' is not unique: a.tsv:1 has it too"),
        ("", "a.tsv: no documents in it"),
        ("id\ttext\n", "a.tsv: no documents in it"),
        ("1\ta\r2\tb\r", "a.tsv:1: lines that end with a carriage return alone: convert the file: tr '\\r' '\\n'"),
    ],
)
def test_broken_tsv(write: Write, refusal: Refusal, content: str, complaint: str) -> None:
    path = write("a.tsv", content)
    assert refusal(lambda: read_documents(path)).startswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("id;text\n1;a, b\n", "a.csv:1: the header line has no comma, but semicolons: separate the columns with"),
        ("id\ttext\n1\ta\n", "a.csv:1: the header line has no comma, but tabs (or name the file .tsv): separate"),
    ],
)
def test_a_csv_with_other_delimiters_is_told(write: Write, refusal: Refusal, content: str, complaint: str) -> None:
    assert refusal(lambda: read_documents(write("a.csv", content))).startswith(complaint)


def test_a_csv_without_a_header_line_is_told(write: Write, refusal: Refusal) -> None:
    complaint = refusal(lambda: read_documents(write("a.csv", "1,Hello\n2,World\n")))
    assert complaint.startswith('a.csv:2: no "_id" field')
    assert complaint.endswith("found 1, hello; the first line of the file names the columns")


def test_parquet_errors_name_the_row(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "body_text": ["x", "y"]}), path)
    assert refusal(lambda: read_documents(path)).startswith('a.parquet: row 1: no "text" field')
    assert refusal(lambda: read_documents(path)).endswith("found id, body_text")
    pq.write_table(pa.table({"id": ["1", "1"], "text": ["x", "y"]}), path)
    assert refusal(lambda: read_documents(path)).startswith("a.parquet: row 2: the id '1' is not unique")


def test_an_empty_corpus_and_a_folder_are_refused(write: Write, refusal: Refusal, beir: BeirMaker) -> None:
    empty = write("corpus.jsonl", "\n\n")
    assert refusal(lambda: read_documents(empty)) == "corpus.jsonl: no documents in it"
    folder = beir()
    assert refusal(lambda: read_documents(folder)).endswith("name tiny/corpus.jsonl")


def test_documents_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first documents are there before the broken end of the file is met."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"_id": {i}, "text": "x"}}\n' for i in range(50_000)) + "broken")
    assert len(list(islice(read_documents(path), 40_000))) == 40_000


def test_a_shared_hash_is_no_duplicate(write: Write, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setattr(SeenIds, "add", lambda self, name: True)
    path = write("corpus.jsonl", [{"_id": "1", "text": "x"}, {"_id": "2", "text": "y"}])
    assert [document.id for document in read_documents(path)] == ["1", "2"]
    path = write("corpus.jsonl", [{"_id": "1", "text": "x"}, {"_id": "1", "text": "y"}])
    assert "not unique" in refusal(lambda: read_documents(path))


def test_seen_ids_are_exact_and_small() -> None:
    seen = SeenIds()
    count = 200_000
    assert not any(seen.add(f"doc-{number}") for number in range(count))
    assert all(seen.add(f"doc-{number}") for number in range(0, count, 7))
    assert not seen.add("another")
    assert seen.nbytes() <= 16 * count + SeenIds().nbytes()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_beir_folder_knows_its_files(beir: BeirMaker, ending: str) -> None:
    folder = BeirFolder(beir("nfcorpus", ending))
    assert (folder.name, folder.splits()) == ("nfcorpus", ["test", "train"])
    assert folder.corpus.name == f"corpus.jsonl{ending}"
    assert folder.qrels("train").name == f"train.tsv{ending}"
    assert [document.id for document in read_documents(folder.queries)] == ["a", "b"]
    assert is_beir_folder(folder.path)


def test_beir_folder_names_itself_where_the_path_has_no_name(beir: BeirMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(beir("scifact"))
    assert BeirFolder(Path()).name == "scifact"


def test_what_a_beir_folder_lacks_is_named(beir: BeirMaker, refusal: Refusal, tmp_path: Path) -> None:
    folder = beir()
    assert refusal(lambda: BeirFolder(folder).qrels("dev")) == (
        "tiny has no split 'dev' (qrels/dev.tsv): there are test, train"
    )
    for missing in ("qrels/test.tsv", "qrels/train.tsv"):
        (folder / missing).unlink()
    assert refusal(lambda: BeirFolder(folder)).startswith("tiny is not a BEIR folder: qrels/*.tsv is missing (a BEIR")
    (folder / "queries.jsonl").unlink()
    assert refusal(lambda: BeirFolder(folder)).startswith("tiny is not a BEIR folder: queries.jsonl is missing")
    (folder / "corpus.jsonl").unlink()
    assert refusal(lambda: BeirFolder(folder)).startswith("tiny is not a BEIR folder: corpus.jsonl is missing")
    assert refusal(lambda: BeirFolder(tmp_path / "nowhere")) == "no such folder: nowhere"
    assert not is_beir_folder(folder)
    assert not is_beir_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td 1\t2\r\nq2\td2\t0\n",
        "q1\td 1\t2\n\nq2\td2\t0.0\n",
        "\n\nquery-id\tcorpus-id\tscore\nq1\td 1\t2\nq2\td2\t0\n",
        "query_id\tcorpus_id\tscore\nq1\td 1\t2\nq2\td2\t0\n",
        "qid docid rel\nq1\td 1\t2\nq2 d2 0\n",
        "Topic iteration Document-ID Label\nq1\td 1\t2\nq2 0 d2 0\n",
        '"query-id"\t"corpus-id"\t"score"\n"q1"\t"d 1"\t"2"\n"q2"\t"d2"\t0\n',
        "corpus-id\tquery-id\tscore\nd 1\tq1\t2\nd2\tq2\t0\n",
        "score\tquery-id\tcorpus-id\n2\tq1\td 1\n0\tq2\td2\n",
        "query-id\tcorpus-id\tscore\tfold\nq1\td 1\t2\t1\nq2\td2\t0\t1\n",
        'lang\tscore\tnote\t"Doc ID"\ttopic\nen\t2\t\t"d 1"\tq1\nde\t0\tx\td2\tq2\n',
    ],
)
def test_beir_judgments(write: Write, content: str) -> None:
    found = [(each.query_id, each.document_id, each.grade) for each in read_qrels(write("test.tsv", content))]
    assert found == [("q1", "d 1", 2), ("q2", "d2", 0)]


def test_trec_judgments(write: Write) -> None:
    path = write("qrels.txt", "1 0 d1 -1\n1\t0\td2\t3\n")
    assert list(read_qrels(path)) == [Judgment("1", "d1", -1, f"{path}:1"), Judgment("1", "d2", 3, f"{path}:2")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q1\td1\t1\nq1\td1\n", "a.tsv:2: not a judgment"),
        ("q1\td1\t1.5\n", "a.tsv:1: the score must be a whole number, not '1.5'"),
        ("q1\td1\tinf\n", "a.tsv:1: the score must be a whole number, not 'inf'"),
        ("query-id\tcorpus-id\tscore\nquery-id\tcorpus-id\tscore\n", "a.tsv:2: the score must be a whole number"),
        ("query-id\tcorpus-id\tscore\n", "a.tsv: no judgments in it"),
        ("q\td\tg\nq1\td1\t1\n", "a.tsv:1: the score must be a whole number, not 'g'; name the columns of a header"),
        ("q1\td1\t1\nqid\tdocid\trel\n", "a.tsv:2: the score must be a whole number, not 'rel'"),
        ("query-id\tcorpus-id\tgood\nq\td\t1\n", "a.tsv:1: a header line that names no single column each"),
        ("query-id\tdocid\tpid\tscore\nq\td\te\t1\n", "a.tsv:1: a header line that names no single column each"),
        ("query-id\tcorpus-id\tscore\nq\td\t1\t2\n", "a.tsv:2: not a judgment: 4 columns, but the header line has 3"),
        ("corpus-id\tquery-id\tscore\n\tq\t1\n", "a.tsv:2: the id of the query or of the document is empty"),
        ("\td1\t1\n", "a.tsv:1: the id of the query or of the document is empty"),
        ("q1\td1\t4294967296\n", "a.tsv:1: the score must lie between -1000000 and 1000000, not 4294967296"),
        ("q1\td1\t-1e30\n", "a.tsv:1: the score must lie between -1000000 and 1000000, not -1e30"),
    ],
)
def test_broken_judgments(write: Write, refusal: Refusal, content: str, complaint: str) -> None:
    path = write("a.tsv", content)
    assert refusal(lambda: read_qrels(path)).startswith(complaint)


def test_an_error_comes_before_its_document_is_yielded(write: Write) -> None:
    documents: Iterator[Document] = read_documents(write("a.jsonl", [{"_id": "1", "text": "x"}, {"_id": "1"}]))
    assert next(documents).id == "1"
    with pytest.raises(UserError):
        next(documents)


def test_sample_collections_are_read_whole(data_root: Path) -> None:
    folder = BeirFolder(data_root / "cranfield")
    assert sum(1 for _ in read_documents(folder.corpus)) == 1400
    assert sum(1 for _ in read_documents(folder.queries)) == 225
    assert sum(1 for _ in read_qrels(folder.qrels("test"))) == 1612
