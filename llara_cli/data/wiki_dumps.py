"""Articles of a wiki: WikiExtractor's output, and MediaWiki's own XML dumps."""

from __future__ import annotations

import html
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from llara_cli.core.errors import UserError
from llara_cli.core.registry import missing_extra
from llara_cli.data.records import Record, parse_object
from llara_cli.data.text_files import one_line, open_bytes, read_lines

_DOC = re.compile(r'<doc\b.*?\btitle="(?P<title>.*)">\s*')
_ARTICLES = "0"
_FILES, _CATEGORIES = "6", "14"
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


def read_wikiextractor(path: Path) -> Iterator[Record]:
    """``title`` and ``text`` of every article in a WikiExtractor file: ``<doc ...>`` blocks, or its ``--json`` lines.

    Both forms have HTML escapes, which are undone here.
    """
    lines = ((f"{path}:{number}", line) for number, line in read_lines(path))
    for where, line in lines:
        if line.lstrip().startswith("{"):
            yield _json_article(line, where)
        elif line.strip():
            yield Record(where, {"title": _title(line, where), "text": _body(lines, where)})


def _json_article(line: str, where: str) -> Record:
    fields = parse_object(line, where)
    for name in ("title", "text", "contents"):
        if isinstance(value := fields.get(name), str):
            fields[name] = html.unescape(value)
    return Record(where, fields)


def _title(line: str, where: str) -> str:
    match = _DOC.fullmatch(line.strip())
    if match is None:
        raise UserError(f"{where}: not WikiExtractor's output (<doc ... title=...> or a JSON object): {line[:40]!r}")
    return html.unescape(match["title"])


def _body(lines: Iterator[tuple[str, str]], opened: str) -> str:
    kept: list[str] = []
    for _, line in lines:
        if line.strip() == "</doc>":
            return html.unescape("\n".join(kept)).strip()
        kept.append(line)
    raise UserError(f"{opened}: this <doc> has no </doc>: the file is truncated; copy or extract it again")


def read_mediawiki(path: Path) -> Iterator[Record]:
    """``title`` and ``text`` of every article in a MediaWiki dump; redirects and other namespaces are skipped.

    The XML is read by the standard library's parser, one page in memory at a time: ``mwxml`` keeps a little of every
    page, 2 GB at the end of the English Wikipedia. The markup is read by ``mwparserfromhell``, at about 1 MB/s: for a
    whole Wikipedia use WikiExtractor's output or the hub's ``hf:wikimedia/wikipedia/20231101.en``.
    """
    try:
        from llara_cli.data.wikitext import plain_text
    except ImportError as error:
        raise missing_extra("mwparserfromhell, which reads MediaWiki dumps,", "wiki") from error
    wordless = {"file", "image", "category"}
    with open_bytes(path) as file:
        for page in _elements(file, path):
            if page.tag == "namespace":
                wordless |= {(page.text or "").lower()} if page.get("key") in (_FILES, _CATEGORIES) else set()
            elif (markup := _article(page)) is not None:
                title = page.findtext("title") or ""
                yield Record(f"{path}: page {title!r}", {"title": title, "text": plain_text(markup, wordless)})


def _article(page: ElementTree.Element) -> str | None:
    """The markup of a page's last revision; None if the page is not an article."""
    revisions = page.findall("revision")
    if page.findtext("ns", _ARTICLES) != _ARTICLES or page.find("redirect") is not None or not revisions:
        return None
    markup = revisions[-1].findtext("text") or ""
    wikitext = revisions[-1].findtext("model", "wikitext") == "wikitext"
    return markup if wikitext and not _REDIRECT.match(markup) else None


def _elements(file: IO[bytes], path: Path) -> Iterator[ElementTree.Element]:
    """Every ``namespace`` and ``page`` element of a dump, names without their XML namespace, freed after use."""
    root = revision = ElementTree.Element("")
    try:
        for event, element in ElementTree.iterparse(file, events=("start", "end")):
            if event == "end":
                element.tag = _bare(element.tag)
            elif not root.tag:
                root = _checked_root(element, path)
            if event == "end" and element.tag == "revision":
                # A dump with full history has thousands of revisions per page: only the newest, the last, is kept.
                revision.clear()
                revision = element
            elif event == "end" and element.tag in ("namespace", "page"):
                yield element
                root.clear()
    except ElementTree.ParseError as error:
        raise UserError(
            f"{path}:{error.position[0]}: broken or cut-off XML ({one_line(error)}): copy or download it again"
        ) from error
    except (LookupError, ValueError) as error:  # of the encoding that the XML declaration names
        raise UserError(f"{path}:1: XML that cannot be read: {one_line(error)}: convert it to UTF-8") from error


def _checked_root(element: ElementTree.Element, path: Path) -> ElementTree.Element:
    name = _bare(element.tag)
    if name != "mediawiki":
        raise UserError(f"{path}:1: not a MediaWiki dump: the outermost element is {reprlib.repr(name)}")
    return element


def _bare(tag: str) -> str:
    """``{http://www.mediawiki.org/xml/export-0.11/}page`` -> ``page``."""
    return tag.rpartition("}")[2]
