"""Files that a user names as output: checked before any work, and nothing else is ever harmed by writing them."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from program import Llara

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.output_files import check_output, open_output

RUN = 25
"""Lines of a run: five queries with five hits each."""


@pytest.fixture
def search(llara: Llara, beir: Path, tiny_model: Path) -> tuple[object, ...]:
    """The command line, all but ``--output``, of a search with an index that is there."""
    assert llara("encode", beir, "--model", tiny_model).code == 0
    assert llara("index").code == 0
    return ("search", "--queries", beir / "queries.jsonl", "-k", 5)


def write(path: Path, content: bytes = b"new\n") -> None:
    """What a command does with its output."""
    check_output(path, path.parent / "ws")
    with open_output(path) as file:
        file.write(content)


def test_a_link_is_written_through_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far/run.trec", tmp_path / "run.trec"
    target.write_text("old\n")
    target.chmod(0o640)
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to("far/later.trec")
    before = os.umask(0o027)
    try:
        write(dangling)
    finally:
        os.umask(before)
    assert (tmp_path / "far/later.trec").read_text() == "new\n"
    assert stat.S_IMODE((tmp_path / "far/later.trec").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, LlaraError])
def test_a_failure_leaves_the_old_file_and_nothing_beside(tmp_path: Path, error: type[BaseException]) -> None:
    path, own = tmp_path / "run", tmp_path / "run.part"
    path.write_text("old\n")
    own.write_text("a file of the user\n")
    with pytest.raises(error), open_output(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    write(tmp_path / "other")
    assert (path.read_text(), own.read_text()) == ("old\n", "a file of the user\n")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["other", "run", "run.part"]


def test_a_pipe_is_written_into(search: tuple[object, ...], llara: Llara, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert llara(*search, "--output", pipe).code == 0
    reader.join(timeout=30)
    assert found[0].count(b"\n") == RUN
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.read_bytes()
    except OSError:
        pytest.skip("device nodes cannot be made or used here")
    write(device)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert [item.name for item in tmp_path.iterdir()] == ["null"]


def test_an_open_file_is_written_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as file:
        file.write("before\n")
        file.flush()
        write(Path(f"/dev/fd/{file.fileno()}"))
        file.write("after\n")
    assert (tmp_path / "log").read_text() == "before\nnew\nafter\n"


def test_standard_output_holds_the_run_alone(search: tuple[object, ...], llara: Llara, tmp_path: Path) -> None:
    output, printed, before = tmp_path / "link", tmp_path / "printed", os.dup(1)
    output.symlink_to("/dev/stdout")
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        try:
            outcome = llara(*search, "--output", output)
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert (outcome.code, outcome.out) == (0, "")
    lines = printed.read_text().splitlines()
    assert len(lines) == RUN
    assert all(line.split()[1] == "Q0" for line in lines)
    refused = llara(*search, "--output", output, "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "--json prints on standard output" in refused.error


@pytest.mark.parametrize(("place", "told"), [("/dev/stdout", ""), ("/dev/fd/{}", "/dev/fd/{}: cannot be written")])
def test_a_reader_of_standard_output_that_has_left_is_no_mistake(place: str, told: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    before = os.dup(1)
    os.dup2(writing, 1)
    try:
        with pytest.raises(LlaraError) as raised:
            write(Path(place.format(writing)))
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(writing)
    assert str(raised.value).partition(": Broken")[0] == told.format(writing)


def test_what_cannot_be_written_is_told_before_the_search(
    search: tuple[object, ...],
    llara: Llara,
    beir: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llara_cli.retrieval.searcher import Searcher

    monkeypatch.setattr(Searcher, "rank", lambda *_: pytest.fail("it was searched"))
    queries = beir / "queries.jsonl"
    linked, hard, loop = tmp_path / "linked", tmp_path / "hard", tmp_path / "loop"
    linked.symlink_to(queries)
    hard.hardlink_to(queries)
    loop.symlink_to(loop)
    content = queries.read_bytes()
    (vectors,) = (tmp_path / "ws/embeddings").glob("*/vectors-00000.npy")
    for output, told in (
        (tmp_path, "is a folder: name a file in it"),
        (tmp_path / "no/run", "no such folder to write into"),
        (queries / "run", "no such folder to write into"),
        (queries, "is an input of this command"),
        (linked, "is an input of this command"),
        (hard, "is an input of this command"),
        (tiny_model / "config.json", "is an input of this command"),
        (vectors, "lies among the files that llara keeps"),
        (tmp_path / "ws/embeddings/run", "lies among the files that llara keeps"),
        (tmp_path / "ws/llara.toml", "holds the settings of the workspace"),
        (tmp_path / ("x" * 256), "the name is too long"),
        (loop, "cannot be written"),
        ("/dev/fd/999", "not open: name a file"),
    ):
        outcome = llara(*search, "--output", output)
        assert (outcome.code, told in outcome.err) == (2, True), (output, outcome.err)
        assert str(output) in outcome.error
    assert queries.read_bytes() == content


def test_what_is_no_place_for_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ws/tracking").mkdir(parents=True)
    with pytest.raises(UserError, match="lies among the files that llara keeps"):
        check_output(tmp_path / "ws/tracking/run", tmp_path / "ws")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="is not a regular file, pipe or character device"):
            check_output(tmp_path / "socket", tmp_path / "ws")


def test_a_place_without_permission_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "run").touch(mode=0o444)
    with pytest.raises(UserError, match="not writable"):
        write(tmp_path / "run")
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UserError, match="not writable"):
        write(tmp_path / "closed/run")


def test_every_command_checks_its_output(
    search: tuple[object, ...], llara: Llara, train: Path, beir: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked.jsonl").symlink_to(train)
    (index,) = (path.name for path in (tmp_path / "ws/indexes").iterdir())
    (embeddings,) = (path.name for path in (tmp_path / "ws/embeddings").iterdir())
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "folder.png").mkdir()
    inside = tmp_path / "ws/embeddings" / embeddings
    for command, told in (
        (("mine", train, "--index", index, "--output", tmp_path / "linked.jsonl", "--restart"), "is an input"),
        (("mine", train, "--index", index, "--output", inside / "rows.jsonl"), "lies among the files"),
        (("export", embeddings, inside / "vectors-00000.npy", "--force"), "lies among the files"),
        (("export", embeddings, tmp_path / "folder.npy", "--force"), "is a folder"),
        (("compare", "a", "b", "--plot", tmp_path / "folder.png"), "is a folder"),
        (("compare", "a", "b", "--plot", inside / "bars.png"), "lies among the files"),
    ):
        outcome = llara(*command)
        assert (outcome.code, told in outcome.error) == (2, True), outcome.err
