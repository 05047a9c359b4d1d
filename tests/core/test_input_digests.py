"""Digests of input files: remembered while a file stays the same, and never longer."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llara_cli.core.input_digests import LARGE, InputDigests

FAKE = "0" * 64


def _large_file(path: Path, first: bytes = b"a") -> str:
    with path.open("wb") as file:
        file.write(first)
        file.truncate(LARGE)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _put_fake_digest(store: Path) -> None:
    stored = json.loads(store.read_text())
    store.write_text(json.dumps({name: [state, FAKE] for name, (state, _) in stored.items()}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace/cache/digests.json"


def test_a_large_file_is_hashed_once_for_all_processes(tmp_path: Path, store: Path) -> None:
    digest = _large_file(tmp_path / "weights")
    assert InputDigests(store, fresh_seconds=0).of(tmp_path / "weights") == digest
    _put_fake_digest(store)
    assert InputDigests(store, fresh_seconds=0).of(tmp_path / "weights") == FAKE  # read from the store, not hashed


def test_a_file_that_changed_is_hashed_again_even_with_its_old_size_and_time(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "weights"
    _large_file(file)
    digests, before = InputDigests(store, fresh_seconds=0), file.stat()
    digests.of(file)
    changed = _large_file(file, b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.of(file) == changed
    assert InputDigests(store, fresh_seconds=0).of(file) == changed
    assert len(json.loads(store.read_text())) == 1  # the old digest is gone


def test_each_workspace_keeps_the_digests(tmp_path: Path, store: Path) -> None:
    other = tmp_path / "other/cache/digests.json"
    other.parent.parent.mkdir()
    digests = InputDigests(store, fresh_seconds=0)
    digests.keep_in(other)  # a second workspace in the same program
    digest = _large_file(tmp_path / "weights")
    assert digests.of(tmp_path / "weights") == digest
    assert store.read_text() == other.read_text()
    store.unlink()
    _put_fake_digest(other)
    assert InputDigests(store, other, fresh_seconds=0).of(tmp_path / "weights") == FAKE


class CountedPath(type(Path())):  # type: ignore[misc]
    """A path that counts how often it is read."""

    reads = 0

    def read_text(self, *args: Any, **kwargs: Any) -> str:
        CountedPath.reads += 1
        return super().read_text(*args, **kwargs)


def test_a_digest_in_memory_needs_no_store(tmp_path: Path, store: Path) -> None:
    digest = _large_file(tmp_path / "weights")
    digests = InputDigests(CountedPath(store), fresh_seconds=0)
    assert digests.of(tmp_path / "weights") == digest
    reads = CountedPath.reads
    assert reads > 0
    assert digests.of(tmp_path / "weights") == digest
    assert CountedPath.reads == reads


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, store: Path) -> None:
    digest = _large_file(tmp_path / "weights")
    assert InputDigests(store, fresh_seconds=3600).of(tmp_path / "weights") == digest
    assert not store.exists()


def test_digests_of_small_files_are_not_stored(tmp_path: Path, store: Path) -> None:
    (tmp_path / "corpus").write_bytes(b"bees")
    digests = InputDigests(store, fresh_seconds=0)
    assert digests.of(tmp_path / "corpus") == hashlib.sha256(b"bees").hexdigest()
    assert not store.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": ["b"]}', "\x00"])
def test_a_damaged_store_is_replaced(tmp_path: Path, store: Path, content: str) -> None:
    digest = _large_file(tmp_path / "weights")
    store.parent.mkdir()
    store.write_text(content)
    assert InputDigests(store, fresh_seconds=0).of(tmp_path / "weights") == digest
    assert [entry[1] for entry in json.loads(store.read_text()).values()] == [digest]


def test_no_workspace_is_made_for_digests(tmp_path: Path) -> None:
    _large_file(tmp_path / "weights")
    InputDigests(tmp_path / "workspace/cache/digests.json", fresh_seconds=0).of(tmp_path / "weights")
    assert not (tmp_path / "workspace").exists()


def test_a_workspace_keeps_digests_in_its_cache(tmp_path: Path, store: Path) -> None:
    _large_file(tmp_path / "weights")
    InputDigests(store, fresh_seconds=0).of(tmp_path / "weights")
    _put_fake_digest(store)
    program = (
        "import sys; from pathlib import Path; from llara_cli.core.input_digests import input_digest\n"
        "from llara_cli.core.workspace import Workspace\n"
        "Workspace(Path(sys.argv[1])); print(input_digest(Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "workspace"), str(tmp_path / "weights")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == FAKE
