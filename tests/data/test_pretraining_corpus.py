"""Pre-training corpora: what belongs to one, in which order, and as what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.data import pretraining_corpus
from llara_cli.data.pretraining_corpus import RawDocument, ReadyRow, corpus_files, read_corpus

Write = Callable[[str, str | bytes | Sequence[Mapping[str, Any]]], Path]
Refusal = Callable[[Callable[[], object]], str]
BeirMaker = Callable[..., Path]
Hub = Callable[[Mapping[tuple[str, str | None], Any]], list[tuple[str, str | None]]]


def texts(*arguments: object) -> list[str]:
    """The texts of a corpus of raw documents."""
    return [
        item.text for item in read_corpus([str(argument) for argument in arguments]) if isinstance(item, RawDocument)
    ]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_rows_with_text_or_contents_and_a_title(write: Write, ending: str) -> None:
    path = write(
        f"a.jsonl{ending}",
        [
            {"text": "one", "url": "x"},
            {"contents": "two", "title": None},
            {"title": "Ada", "text": "was first."},
            {"title": "Ada", "text": " Ada was first."},
            {"title": " ", "text": "three"},
        ],
    )
    assert texts(path) == ["one", "two", "Ada\nwas first.", " Ada was first.", "three"]


def test_parquet_rows(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "title": ["T", None], "text": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_corpus([str(tmp_path / "a.parquet")])) == [
        RawDocument("T\nx", f"{tmp_path / 'a.parquet'}: row 1"),
        RawDocument("y", f"{tmp_path / 'a.parquet'}: row 2"),
    ]


def test_a_text_file_is_one_document(write: Write) -> None:
    first = write("a.txt", "\ufeffOne.\r\n\r\n\r\nTwo\nlines.\n")
    assert list(read_corpus([str(first)])) == [RawDocument("One.\n\n\nTwo\nlines.", f"{first}:1")]
    assert texts(write("b.txt.gz", "x\n"), write("c.txt.bz2", "y"), first)[:2] == ["x", "y"]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_a_huge_text_file_comes_in_pieces(write: Write, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setattr(pretraining_corpus, "LONGEST_TEXT", 100)
    words = [f"word{number:03}" for number in range(100)]
    pieces = texts(write("a.txt", separator.join(words) + "\n"))
    assert len(pieces) > 5
    assert all(len(piece) <= 101 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(words)
    if separator:
        assert [word for piece in pieces for word in piece.split()] == words, "no word is cut"


def test_a_folder_is_walked_in_sorted_order(write: Write, tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a/z.txt", "a.txt", "B/1.TXT"):
        write(name, name)
    write("a/rows.jsonl.gz", [{"text": "rows"}])
    write("a/sub/wiki_00", '<doc id="1" title="T">\nT\n\nwiki\n</doc>\n')
    files = corpus_files([str(tmp_path)])
    expected = ["B/1.TXT", "a/rows.jsonl.gz", "a/sub/wiki_00", "a/z.txt", "a.txt", "b/10.txt", "b/2.txt"]
    assert [str(file.relative_to(tmp_path)) for file in files] == expected
    assert texts(tmp_path) == ["B/1.TXT", "rows", "T\n\nwiki", "a/z.txt", "a.txt", "b/10.txt", "b/2.txt"]


ABOUT = ["README.txt", "LICENSE.txt", "provenance.txt", "NOTICE", "CHANGES.txt.gz", ".hidden.txt", ".git/a.txt"]
UNKNOWN = ["x.md", "info.json", "Makefile", "image.png", "a.parquet.gz", "_SUCCESS", "table.csv"]


@pytest.mark.parametrize("name", ABOUT + UNKNOWN)
def test_what_is_no_corpus_inside_a_folder_is_left_out(write: Write, tmp_path: Path, name: str) -> None:
    write("data/a.txt", "text")
    write(f"data/{name}", "not this")
    assert texts(tmp_path / "data") == ["text"]


@pytest.mark.parametrize("name", ["authors.jsonl", "changes.jsonl.gz", "notice.jsonl"])
def test_rows_are_read_whatever_their_file_is_called(write: Write, tmp_path: Path, name: str) -> None:
    write("data/a.txt", "text")
    write(f"data/{name}", [{"text": "row"}])
    assert sorted(texts(tmp_path / "data")) == ["row", "text"]


def test_files_that_nobody_reads_are_told_once_and_by_their_endings(
    write: Write, tmp_path: Path, refusal: Refusal
) -> None:
    for name in (*ABOUT, "a.txt", "b/x.md", "b/table.csv", "more.CSV", "z.csv.gz", "info.json", "Makefile"):
        write(f"data/{name}", "text")
    write("other/b.md", "x")
    write("other/b.txt", "x")
    told: list[str] = []
    corpus_files([str(tmp_path / "data"), str(tmp_path / "other")], told.append)
    assert told == [
        "skipped 12 files: CHANGES.txt.gz, LICENSE.txt, NOTICE, README.txt, provenance.txt, "
        ".csv, .csv.gz, .json, .md, no ending "
        "(a .json file (one object per line) is read if it is named itself)"
    ]
    write("alone/rows.json", '{"text": "x"}')
    message = refusal(lambda: corpus_files([str(tmp_path / "alone")]))
    assert message.startswith("alone: no corpus file in this folder: looked for .txt, .jsonl, MediaWiki's")
    assert message.endswith("skipped 1 file: .json (a .json file (one object per line) is read if it is named itself)")


def test_links_to_folders_are_followed_and_each_folder_is_read_once(write: Write, tmp_path: Path) -> None:
    for name in ("data/own/a.txt", "far/b.txt", "far/deep/c.txt", "far/.git/d.txt"):
        write(name, name)
    (tmp_path / "data/to").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "data/again").symlink_to("../far/deep", target_is_directory=True)
    (tmp_path / "far/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "far/self").symlink_to(".", target_is_directory=True)
    assert texts(tmp_path / "data") == ["far/deep/c.txt", "data/own/a.txt", "far/b.txt"]


def test_what_is_left_out_of_folders_can_be_named(write: Write) -> None:
    assert texts(write("README.txt", "read me"), write(".a.txt", "hidden")) == ["read me", "hidden"]
    assert texts(write("a.json", [{"text": "row"}])) == ["row"]


def test_of_a_beir_folder_only_the_documents_count(beir: BeirMaker) -> None:
    folder = beir()
    assert corpus_files([str(folder)]) == [folder / "corpus.jsonl"]
    assert texts(folder) == ["text 0", "T1\ntext 1", "T2\ntext 2"]


def test_ready_rows(write: Write) -> None:
    path = write(
        "a.jsonl",
        [
            {"input": "i", "output_summarize": "s", "output_predict": "p"},
            {"input": "i", "output_summarize": None, "output_predict": ""},
            {"input": ""},
        ],
    )
    assert list(read_corpus([str(path)])) == [
        ReadyRow("i", "s", "p", f"{path}:1"),
        ReadyRow("i", None, "", f"{path}:2"),
        ReadyRow("", None, None, f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"txt": "x"}, 'no "text" field (nor contents): found txt'),
        ({"text": 1}, '"text" must be a string, not a number'),
        ({"text": None}, '"text" is null'),
        ({"input": None}, '"input" is null'),
        ({"input": ["x"]}, '"input" must be a string, not a list'),
        ({"input": "x", "output_predict": 3}, '"output_predict" must be a string, not a number'),
        ({"text": "x", "title": 3}, '"title" must be a string, not a number'),
    ],
)
def test_a_row_that_is_neither_is_told(write: Write, refusal: Refusal, row: dict[str, Any], complaint: str) -> None:
    path = write("a.jsonl", [row])
    assert refusal(lambda: read_corpus([str(path)])).startswith(f"a.jsonl:1: {complaint}")


def test_documents_and_ready_rows_do_not_mix(write: Write, refusal: Refusal) -> None:
    raw, ready = write("a.jsonl", [{"text": "x"}]), write("b.jsonl", [{"input": "x"}])
    assert refusal(lambda: read_corpus([str(raw), str(ready)])) == (
        "b.jsonl:1: a ready row (input, output_...), but a.jsonl:1 is a raw document: train on one kind only"
    )
    assert refusal(lambda: read_corpus([str(ready), str(raw)])).startswith("a.jsonl:1: a raw document, but b.jsonl:1")


def test_blank_documents_are_left_out_and_a_corpus_of_them_is_empty(write: Write, refusal: Refusal) -> None:
    blank = write("a.jsonl", [{"text": " \n"}, {"title": "T", "text": ""}])
    assert texts(blank, write("b.txt", "x")) == ["x"]
    assert refusal(lambda: read_corpus([str(blank)])) == "no documents in a.jsonl"
    assert refusal(lambda: read_corpus([str(write("c.txt", ""))])) == "no documents in c.txt"


def test_arguments_that_lead_nowhere(write: Write, refusal: Refusal, tmp_path: Path) -> None:
    assert refusal(lambda: read_corpus([str(tmp_path / "no")])) == "no such file: no"
    assert refusal(lambda: corpus_files([str(tmp_path / "no")])) == "no such file: no"
    table = write("only/table.docx", "")
    assert refusal(lambda: corpus_files([str(table)])).startswith(
        "only/table.docx: unknown kind of corpus: known are .txt"
    )
    assert "no corpus file in this folder" in refusal(lambda: corpus_files([str(table.parent)]))


def test_documents_stream(write: Write) -> None:
    items = read_corpus([str(write("a.jsonl", '{"text": "x"}\nbroken\n'))])
    assert next(items) is not None
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON"):
        next(items)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Stand in for ``datasets``: (name, configuration) -> rows, or the error it raises. Returns the calls."""

    def install(known: Mapping[tuple[str, str | None], Any]) -> list[tuple[str, str | None]]:
        calls: list[tuple[str, str | None]] = []

        def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool) -> Any:
            assert (split, streaming) == ("train", True)
            calls.append((name, configuration))
            answer = known.get((name, configuration), FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub"))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return calls

    return install


def test_hub_data_sets_are_named_with_owner_and_configuration(hub: Hub, write: Write) -> None:
    rows = [{"text": "one"}, {"title": "T", "text": "two"}]
    hub({("wikimedia/wikipedia", "20231101.en"): rows, ("org/name", None): rows[:1], ("old", None): rows[:1]})
    argument = "hf:wikimedia/wikipedia/20231101.en"
    expected = [RawDocument("one", f"{argument}: row 1"), RawDocument("T\ntwo", f"{argument}: row 2")]
    assert list(read_corpus([argument])) == expected
    assert texts("hf:org/name", write("a.txt", "file"), "hf:old") == ["one", "file", "one"]
    assert corpus_files([argument]) == []


def test_two_parts_may_be_an_old_name_and_its_configuration(hub: Hub) -> None:
    calls = hub({("wikitext", "wikitext-2-raw-v1"): [{"text": "x"}]})
    assert texts("hf:wikitext/wikitext-2-raw-v1") == ["x"]
    assert calls == [("wikitext/wikitext-2-raw-v1", None), ("wikitext", "wikitext-2-raw-v1")]


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (
            ConnectionError("Couldn't reach\n'a/b' on the Hub"),
            "hf:a/b: the hub cannot be reached: Couldn't reach 'a/b' on",
        ),
        (ValueError("BuilderConfig not found\n" + "x" * 999), "hf:a/b: cannot be opened: BuilderConfig not found xxx"),
        (RuntimeError("scripts are no longer supported"), "hf:a/b: cannot be opened: scripts are"),
    ],
)
def test_a_hub_that_does_not_answer(hub: Hub, refusal: Refusal, error: Exception, complaint: str) -> None:
    hub({("a/b", None): error})
    message = refusal(lambda: read_corpus(["hf:a/b"]))
    assert message.startswith(complaint)
    assert len(message) < 400


def test_an_unknown_data_set_and_a_malformed_name(hub: Hub, refusal: Refusal) -> None:
    hub({})
    assert refusal(lambda: read_corpus(["hf:no/such"])) == (
        "hf:no/such: no such data set on the hub: Dataset 'no/such' doesn't exist on the Hub"
    )
    for argument in ("hf:", "hf:a/", "hf:a/b/c/d"):
        assert "names no data set" in refusal(lambda argument=argument: read_corpus([argument]))  # type: ignore[misc]


def test_hub_rows_without_text_are_told(hub: Hub, refusal: Refusal) -> None:
    hub({("a/b", None): [{"sentence": "x"}]})
    assert refusal(lambda: read_corpus(["hf:a/b"])) == 'hf:a/b: row 1: no "text" field (nor contents): found sentence'


def test_a_connection_that_breaks_later_is_no_mistake_of_the_user(hub: Hub) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "x"}
        raise OSError("connection reset")

    hub({("a/b", None): rows()})
    items = read_corpus(["hf:a/b"])
    next(items)
    with pytest.raises(LlaraError, match="hf:a/b: row 2 could not be fetched: connection reset") as caught:
        next(items)
    assert caught.value.exit_code == 1


def test_sample_rows_of_the_authors(data_root: Path) -> None:
    items = list(read_corpus([str(data_root / "llara-toy" / "toy_pretrain_data.jsonl")]))
    assert len(items) == 11
    assert all(isinstance(item, ReadyRow) and item.output_predict for item in items)


def test_reading_data_needs_no_model_library() -> None:
    """Nor ``datasets``, unless a hub data set is read: importing it alone costs a second."""
    code = """
import pkgutil, importlib, sys, llara_cli.data
for module in pkgutil.iter_modules(llara_cli.data.__path__):
    importlib.import_module(f"llara_cli.data.{module.name}")
print(*({"torch", "transformers", "datasets", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
