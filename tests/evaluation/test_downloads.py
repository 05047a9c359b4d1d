"""Downloads through ir_datasets itself, from a server on 127.0.0.1: transfer, checksum, breaks, kills, conversion."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from judged_sets import FORUMS, archive, random_set
from program import Llara
from serving import Served, serving

from llara_cli.core.artifacts import sha256_file
from llara_cli.core.errors import LlaraError
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.data.runs import read_qrels
from llara_cli.evaluation.benchmarks import Collection
from llara_cli.evaluation.downloads import Downloads

pytest.importorskip("ir_datasets", reason="extra eval is not installed")
BM25 = ("--model", "bm25")
NAME = "scifact"
BLOCK = 8192
"""What ir_datasets hands over at once: less than that is lost where a connection breaks."""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """ir_datasets with a home of the test's own."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets

    return ir_datasets


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """What the archive holds."""
    return random_set(tmp_path / "original", 0, documents=2000)


@pytest.fixture
def server(library: ModuleType, original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """A server with the archive, and ir_datasets' list naming it."""
    with serving(Served({"/scifact.zip": archive(original, NAME)})) as served:
        listed(library, monkeypatch, served, NAME)
        yield served


def listed(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, served: Served, name: str, md5: str | None = None
) -> dict[str, Any]:
    """Put an archive of the server into ir_datasets' own list of downloads."""
    content = served.files[f"/{name}.zip"]
    entry = {
        "url": f"{served.address}/{name}.zip",
        "size_hint": len(content),
        "expected_md5": md5 or hashlib.md5(content).hexdigest(),
        "cache_path": f"{name}/source.zip",
    }
    monkeypatch.setitem(library.util.DownloadConfig.contents()["beir"], name, entry)
    return entry


def files(folder: Path) -> dict[str, bytes]:
    """Corpus, queries and judgments."""
    found = [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def evaluate(llara: Llara, *more: object) -> Any:
    """``evaluate beir --datasets scifact`` with BM25."""
    return llara("evaluate", "beir", "--datasets", NAME, *BM25, "--json", *more)


def test_a_set_is_downloaded_and_evaluated(llara: Llara, server: Served, original: Path, tmp_path: Path) -> None:
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 0, outcome.err
    assert server.gets() == [""]
    folder = tmp_path / "ws/datasets" / NAME
    assert files(folder) == files(original)
    assert json.loads((folder / "manifest.json").read_text())["counts"] == {"documents": 2000}
    direct = llara("evaluate", original, *BM25, "--json").json["datasets"]["original"]
    assert outcome.json["datasets"][NAME] == direct
    assert "datasets" in llara("status").out
    assert llara("status", "--verify").code == 0


def test_what_was_downloaded_is_not_asked_for_again(llara: Llara, server: Served, tmp_path: Path) -> None:
    first = evaluate(llara, "--yes").json
    assert evaluate(llara).json == first
    assert len(server.asked) == 2  # HEAD and GET
    again = llara("evaluate", "beir", "--datasets", NAME, *BM25, "--json", "--yes", workspace=tmp_path / "other")
    assert again.json == first
    assert len(server.asked) == 2  # ir_datasets' cache serves every workspace


def test_without_a_terminal_and_yes_it_is_refused_with_the_size(llara: Llara, server: Served, tmp_path: Path) -> None:
    outcome = evaluate(llara)
    assert outcome.code == 2
    size = f"{len(server.files['/scifact.zip']) / 1e6:.1f} MB"
    assert all(word in outcome.error for word in ("--data-root", "--yes", NAME, size))
    assert server.asked == []
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_at_a_terminal_it_is_asked(llara: Llara, server: Served, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    outcome = evaluate(llara)
    assert f"Download {len(server.files['/scifact.zip']) / 1e6:.1f} MB (scifact)?" in outcome.err
    assert outcome.code == (0 if answer == "y" else 2)
    assert bool(server.asked) == (answer == "y")


def test_the_data_root_is_looked_in_first(llara: Llara, server: Served, tmp_path: Path) -> None:
    random_set(tmp_path / "root" / NAME, 1)
    outcome = evaluate(llara, "--data-root", tmp_path / "root", "--yes")
    assert outcome.code == 0, outcome.err
    assert server.asked == []


def test_a_broken_archive_is_refused_and_removed(
    llara: Llara, library: ModuleType, server: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = server.files["/scifact.zip"]
    server.files["/scifact.zip"] = whole[:500] + b"\0" + whole[501:]
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 1
    assert "the downloaded file is damaged, and was removed" in outcome.error
    assert server.address in outcome.error
    assert not list((tmp_path / "home").rglob("*source.zip*"))
    assert not list((tmp_path / "ws").rglob("manifest.json"))
    server.files["/scifact.zip"] = whole
    assert evaluate(llara, "--yes").code == 0


def test_a_broken_connection_is_taken_up_where_it_broke(
    llara: Llara, server: Served, original: Path, tmp_path: Path
) -> None:
    server.break_after = [3 * BLOCK + 5, 2 * BLOCK]
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 0, outcome.err
    assert server.gets() == ["", f"bytes={3 * BLOCK}-", f"bytes={5 * BLOCK}-"]
    assert files(tmp_path / "ws/datasets" / NAME) == files(original)


def test_a_server_that_gives_no_more_is_given_up_and_what_came_is_kept(
    llara: Llara, server: Served, tmp_path: Path
) -> None:
    server.break_after = [2 * BLOCK, 0, 0, 0, 0, 0]
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 1
    assert "the same command resumes it" in outcome.error
    assert (tmp_path / "home/beir/scifact/source.zip.partial").stat().st_size == 2 * BLOCK
    server.break_after = []
    server.asked.clear()
    assert evaluate(llara, "--yes").code == 0
    assert server.gets() == [f"bytes={2 * BLOCK}-"]


def test_a_server_that_cannot_go_on_in_the_middle_starts_anew(
    llara: Llara, server: Served, original: Path, tmp_path: Path
) -> None:
    server.ranges = False
    server.break_after = [3 * BLOCK]
    assert evaluate(llara, "--yes").code == 0
    assert server.gets() == ["", ""]
    assert files(tmp_path / "ws/datasets" / NAME) == files(original)


def test_an_address_without_a_file_is_named(
    llara: Llara, library: ModuleType, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files.clear()
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 1
    assert f"{server.address}/scifact.zip: the server has no such file (404" in outcome.error


def test_a_server_that_is_not_there(llara: Llara, library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served({"/scifact.zip": b"x"}, address="http://127.0.0.1:9")
    listed(library, monkeypatch, served, NAME)
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 1
    assert "127.0.0.1:9/scifact.zip: cannot be reached" in outcome.error


def test_an_archive_in_another_layout(
    llara: Llara, library: ModuleType, server: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "readme.txt").write_text("nothing")
    server.files["/scifact.zip"] = archive(tmp_path / "odd", NAME)
    listed(library, monkeypatch, server, NAME)
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 1
    assert "not an archive in BEIR layout" in outcome.error


def test_a_copy_of_the_users_own_is_taken(
    llara: Llara, library: ModuleType, server: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ir_datasets' own way around a download: ``downloads/MD5`` in its home."""
    monkeypatch.setenv("IR_DATASETS_SMALL_FILE_SIZE", "10")
    content = server.files["/scifact.zip"]
    (tmp_path / "home/downloads").mkdir(parents=True)
    (tmp_path / "home/downloads" / hashlib.md5(content).hexdigest()).write_bytes(content)
    assert evaluate(llara, "--yes").code == 0
    assert server.asked == []


PROGRAM = """
import json, sys
import ir_datasets
ir_datasets.util.DownloadConfig.contents()["beir"]["scifact"] = json.loads(sys.argv[1])
from llara_cli import app
sys.exit(app.run(sys.argv[2:]))
"""


def test_a_killed_transfer_goes_on_in_the_next_process(
    library: ModuleType, server: Served, original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = listed(library, monkeypatch, server, NAME)
    command = [
        sys.executable, "-c", PROGRAM, json.dumps(entry), "evaluate", "beir", "--datasets", NAME, *BM25, "--yes",
        "-w", str(tmp_path / "ws"),
    ]  # fmt: skip
    kept = tmp_path / "home/beir/scifact/source.zip.partial"
    server.slow = 0.02
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ) as process:
        while process.poll() is None and not (kept.exists() and kept.stat().st_size > 3 * BLOCK):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    had = kept.stat().st_size
    assert 3 * BLOCK < had < len(server.files["/scifact.zip"])
    server.slow = 0
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert server.gets() == ["", f"bytes={had}-"]
    assert files(tmp_path / "ws/datasets" / NAME) == files(original)


def test_half_an_unpacked_set_is_never_picked_up(llara: Llara, server: Served, original: Path, tmp_path: Path) -> None:
    torn = tmp_path / "ws/datasets" / NAME
    random_set(torn, 3)
    (torn / "building.json").write_text("{}")
    outcome = evaluate(llara)
    assert outcome.code == 2  # as if it were not there
    assert "--yes" in outcome.error


def test_every_forum_comes_out_of_one_archive(
    llara: Llara, library: ModuleType, server: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for seed, forum in enumerate(FORUMS):
        random_set(tmp_path / "forums" / forum, seed)
    server.files["/cqadupstack.zip"] = archive(tmp_path / "forums", "cqadupstack")
    listed(library, monkeypatch, server, "cqadupstack")
    outcome = llara("evaluate", "beir", "--datasets", "cqadupstack", *BM25, "--json", "--yes")
    assert outcome.code == 0, outcome.err
    assert server.gets() == [""]
    assert tuple(outcome.json["datasets"]["cqadupstack"]["forums"]) == FORUMS
    for forum in FORUMS:
        assert files(tmp_path / "ws/datasets/cqadupstack" / forum) == files(tmp_path / "forums" / forum)


def test_what_ir_datasets_reads_is_written_in_beir_layout(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MS MARCO's files are no archive in BEIR layout: ir_datasets parses them, here through its public API."""
    (tmp_path / "docs.tsv").write_text('1\tThe "sea" is salt.\n2\tBees dance.\n')
    (tmp_path / "queries.tsv").write_text("7\twhere is salt\n8\twho dances\n")
    (tmp_path / "qrels").write_text("7 0 1 2\n8 0 2 1\n8 0 1 0\n")
    (tmp_path / "more.tsv").write_text("9\twhat is salt\n")
    (tmp_path / "more.qrels").write_text("9 0 1 3\n")
    (tmp_path / "home").mkdir()
    base = library.create_dataset(docs_tsv=tmp_path / "docs.tsv")
    dev = library.create_dataset(queries_tsv=tmp_path / "queries.tsv", qrels_trec=tmp_path / "qrels")
    more = library.create_dataset(queries_tsv=tmp_path / "more.tsv", qrels_trec=tmp_path / "more.qrels")
    for name, dataset in (("own", base), ("own/dev", dev), ("own/more", more)):
        library.registry.register(f"{tmp_path.name}/{name}", dataset)
    monkeypatch.setitem(library.util.DownloadConfig.contents(), f"{tmp_path.name}/own", {})
    space = f"{tmp_path.name}/own"
    splits = {"dev": f"{space}/dev", "more": f"{space}/more"}
    collection = Collection("mine", docs=space, splits=splits, files=())
    made = Downloads(Workspace(tmp_path / "ws")).bring(collection)
    folder = BeirFolder(made.path)
    assert [(d.id, d.passage) for d in read_documents(folder.corpus)] == [
        ("1", 'The "sea" is salt.'), ("2", "Bees dance."),
    ]  # fmt: skip
    assert {d.id: d.text for d in read_documents(folder.queries)} == {
        "7": "where is salt", "8": "who dances", "9": "what is salt",
    }  # fmt: skip
    assert folder.splits() == ["dev", "more"]
    assert read_qrels(folder.qrels("dev")) == {"7": {"1": 2}, "8": {"2": 1, "1": 0}}
    assert read_qrels(folder.qrels("more")) == {"9": {"1": 3}}
    assert made.manifest["files"]["corpus.jsonl"]["sha256"] == sha256_file(folder.corpus)


def test_every_collection_is_in_ir_datasets_list(library: ModuleType, tmp_path: Path) -> None:
    from llara_cli.evaluation.benchmarks import BENCHMARKS

    downloads = Downloads(Workspace(tmp_path / "ws"))
    tasks = [task for benchmark in BENCHMARKS.values() for task in benchmark.tasks]
    for collection in {task.collection for task in tasks if task.collection is not None}:
        for file in downloads.files(collection):
            assert file.url.startswith("http")
            assert len(file.md5) == 32
            assert file.size > 0
        for name in collection.splits.values():
            assert library.load(name).has_qrels()
    assert {task.name for task in tasks if task.collection is None} == {"bioasq", "signal1m", "trec-news", "robust04"}


def test_the_missing_extra_is_named(llara: Llara, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    outcome = evaluate(llara, "--yes")
    assert outcome.code == 2
    assert "pip install 'llara[eval]'" in outcome.error
    with pytest.raises(LlaraError, match="eval"):
        Downloads(Workspace(Path("nowhere")))
