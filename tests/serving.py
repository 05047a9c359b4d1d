"""A real HTTP server on 127.0.0.1 that can go on in the middle of a file, break off, and remember what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """What the server has, and what it did.

    Attributes:
        files: path -> bytes.
        ranges: it can go on in the middle of a file.
        break_after: bytes of an answer after which the connection ends, once for each number in the list.
        slow: seconds between two kilobytes.
        asked: (method, path, Range header or "") of every request.
    """

    files: dict[str, bytes]
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    slow: float = 0.0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def gets(self) -> list[str]:
        """The ranges asked for, "" for a whole file."""
        return [wanted for method, _, wanted in self.asked if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    served: Served

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        served = self.served
        wanted = self.headers.get("Range", "")
        served.asked.append((self.command, self.path, wanted))
        content = served.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and served.ranges else 0
        self.send_response(206 if start else 200)
        if served.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self._send(content[start:])

    def _send(self, content: bytes) -> None:
        end = self.served.break_after.pop(0) if self.served.break_after else len(content)
        with suppress(ConnectionError):  # whoever asked was killed
            for place in range(0, min(end, len(content)), 1024):
                self.wfile.write(content[place : min(place + 1024, end)])
                time.sleep(self.served.slow)


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve in a thread until the block ends."""
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
