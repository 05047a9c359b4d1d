"""Files that the tests of the readers write themselves."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from llara_cli.core.errors import UserError

Content = str | bytes | Sequence[Mapping[str, Any]]
Write = Callable[[str, Content], Path]
Refusal = Callable[[Callable[[], object]], str]
BeirMaker = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below a fresh folder: text, bytes, or rows as JSON lines; compressed as its name says."""
    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }

    def write_file(name: str, content: Content) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(compress.get(path.suffix, bytes)(data))
        return path

    return write_file


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """The message of the ``UserError`` that a call, or the iterator it returns, raises; without the folder's name."""

    def message(call: Callable[[], object]) -> str:
        with pytest.raises(UserError) as caught:
            _exhaust(call())
        text = str(caught.value).replace(f"{tmp_path}{os.sep}", "")
        assert "\n" not in text, "an error is one line"
        return text

    return message


def _exhaust(result: object) -> None:
    if isinstance(result, Iterator):
        for _ in result:
            pass


@pytest.fixture
def beir(write: Write) -> BeirMaker:
    """Write a BEIR folder of three documents and two queries; ``qrels`` maps a split to its lines."""

    def make(name: str = "tiny", ending: str = "", qrels: Mapping[str, str] | None = None) -> Path:
        documents = [{"_id": f"d{i}", "title": f"T{i}" if i else "", "text": f"text {i}"} for i in range(3)]
        write(f"{name}/corpus.jsonl{ending}", documents)
        folder = write(f"{name}/queries.jsonl{ending}", [{"_id": q, "text": f"ask {q}"} for q in "ab"])
        default = {"test": "a\td1\t1\n", "train": "b\td0\t1\nb\td2\t2\na\td1\t1\na\td2\t0\n"}
        for split, lines in (default if qrels is None else qrels).items():
            write(f"{name}/qrels/{split}.tsv{ending}", "query-id\tcorpus-id\tscore\n" + lines)
        return folder.parent

    return make
