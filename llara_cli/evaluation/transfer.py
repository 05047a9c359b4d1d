"""Resumable download of a file in ir_datasets' list.

ir_datasets resumes a broken connection within a process, but starts over in the next one, even for archives of
gigabytes. Here bytes are kept beside the place where ir_datasets expects the file, and moved there when the checksum is
right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ir_datasets import lazy_libs
from ir_datasets.util import HashStream, HashVerificationError, LocalDownload, RequestsDownload

from llara_cli.core.errors import LlaraError
from llara_cli.data.text_files import one_line

TRIES = 3
"""Most tries in a row without a single byte."""
Advance = Callable[[int], None]


def fetch(download: Any, path: Path, advance: Advance) -> None:
    """Download ``download`` (of ir_datasets) to ``path``, its place in ir_datasets' cache.

    ``advance`` is called with the number of new bytes.

    Raises ``LlaraError`` if every source fails; the bytes received are kept. A file with a wrong checksum is removed.
    """
    if path.exists():
        return
    local = [source for source in download.mirrors if isinstance(source, LocalDownload)]
    if any(source.path(force=False).exists() for source in local):
        download.path()  # the user's own copy: ir_datasets checks and copies it
        return
    problems = []
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.with_name(path.name + ".partial")
    for source in download.mirrors:
        if isinstance(source, LocalDownload):
            continue
        try:
            _receive(source, kept, advance)
            _verify(kept, download.expected_md5, source.url)
            kept.replace(path)
            return
        except LlaraError as error:
            problems.append(str(error))
    raise LlaraError("; ".join(problems))


def _receive(source: Any, kept: Path, advance: Advance) -> None:
    """Append the missing bytes to ``kept``, in several tries."""
    requests = lazy_libs.requests()
    length = _whole_length(source, requests)
    had = kept.stat().st_size if kept.exists() else 0
    if length is None or had > length:
        kept.unlink(missing_ok=True)
        had = 0
    advance(had)
    tries = TRIES
    while length is None or not kept.exists() or kept.stat().st_size < length:
        try:
            for count in _append(source, kept, resume=length is not None):
                advance(count)
                tries = TRIES
            if length is None:
                return
            tries -= 1
            problem: object = "it ends too soon"
        except requests.exceptions.RequestException as error:
            tries, problem = tries - 1, error
        if tries <= 0:
            raise LlaraError(
                f"{source.url}: the download broke off ({one_line(problem)}); what was received is kept, and the same "
                "command resumes it"
            )


def _append(source: Any, kept: Path, *, resume: bool) -> Iterator[int]:
    """Write blocks to ``kept`` as they arrive; yield the size of each."""
    with kept.open("ab" if resume else "wb") as file:
        headers = dict(source.headers or {})
        if file.tell():
            headers["Range"] = f"bytes={file.tell()}-"
        # its stream() would lose the partial buffer of a broken connection
        for block in RequestsDownload(source.url, tries=1, headers=headers):
            file.write(block)
            yield len(block)


def _whole_length(source: Any, requests: Any) -> int | None:
    """Size of the file in bytes if the server can resume in the middle; else None.

    Raises ``LlaraError`` if there is no such file: ir_datasets would save the server's error page instead.
    """
    timeout = float(os.environ.get("IR_DATASETS_DL_TIMEOUT", "15"))
    try:
        answer = requests.head(source.url, headers=source.headers, timeout=timeout, allow_redirects=True)
    except requests.exceptions.RequestException as error:
        raise LlaraError(f"{source.url}: cannot be reached ({one_line(error)})") from error
    if answer.status_code in (404, 410):
        raise LlaraError(f"{source.url}: the server has no such file ({answer.status_code} {answer.reason})")
    length = answer.headers.get("content-length", "")
    whole = answer.ok and answer.headers.get("accept-ranges") == "bytes" and length.isdigit()
    return int(length) if whole else None


def _verify(kept: Path, md5: str | None, url: str) -> None:
    """Raise ``LlaraError``, and remove the file, if its checksum is wrong."""
    try:
        with kept.open("rb", buffering=0) as file:
            stream = HashStream(file, md5)
            buffer = bytearray(1 << 20)
            while stream.readinto(buffer):
                pass
    except HashVerificationError as error:
        kept.unlink()
        raise LlaraError(f"{url}: the downloaded file is damaged, and was removed ({one_line(error)})") from error
