"""Wikis: WikiExtractor's two forms, MediaWiki dumps, and their markup."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

from llara_cli.data.pretraining_corpus import RawDocument, read_corpus
from llara_cli.data.wiki_dumps import read_mediawiki, read_wikiextractor
from llara_cli.data.wikitext import plain_text

Write = Callable[[str, Any], Path]
Refusal = Callable[[Callable[[], object]], str]

EXTRACTED = """<doc id="12" url="http://x?curid=12" title="A "quoted" &amp; title">
A "quoted" &amp; title

First &lt;b&gt; paragraph.
Second.


</doc>

<doc id="13" url="u" title="Empty">
</doc>
"""


def dump(*pages: str, namespaces: str = "") -> str:
    """A MediaWiki export of these pages."""
    info = f"<siteinfo><sitename>W</sitename><namespaces>{namespaces}</namespaces></siteinfo>"
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">{info}{"".join(pages)}</mediawiki>'


def page(title: str, markup: str, *, ns: int = 0, extra: str = "", model: str = "wikitext") -> str:
    """One page of an export."""
    revision = f"<id>1</id><contributor><id>5</id></contributor><model>{model}</model><text>{escape(markup)}</text>"
    return f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{extra}<revision>{revision}</revision></page>\n"


@pytest.mark.parametrize("name", ["wiki_00", "wiki_00.bz2", "wiki_00.gz", "extracted"])
def test_wikiextractor_blocks(write: Write, name: str) -> None:
    path = write(name, EXTRACTED)
    first, second = read_wikiextractor(path)
    assert (first.where, second.where) == (f"{path}:1", f"{path}:10")
    assert first.fields["title"] == 'A "quoted" & title'
    assert first.fields["text"] == 'A "quoted" & title\n\nFirst <b> paragraph.\nSecond.'
    assert second.fields["text"] == ""
    assert next(read_corpus([str(path)])) == RawDocument(first.fields["text"], f"{path}:1")


def test_wikiextractor_json(write: Write) -> None:
    path = write("wiki_07", [{"id": "1", "revid": 2, "title": "A &amp; B", "text": "One &lt; two."}])
    assert list(read_corpus([str(path)])) == [RawDocument("A & B\nOne < two.", f"{path}:1")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('\n<doc id="1" title="T">\ntext\n', "wiki_00:2: this <doc> has no </doc>"),
        ("plain text\n", "wiki_00:1: not WikiExtractor's output"),
        ('<doc id="1">\n</doc>\n', "wiki_00:1: not WikiExtractor's output"),
        ('{"title": "T", "text": \n', "wiki_00:1: not JSON"),
        ('{"title": "T"}\n', 'wiki_00:1: no "text" field'),
    ],
)
def test_broken_wikiextractor_files(write: Write, refusal: Refusal, content: str, complaint: str) -> None:
    path = write("wiki_00", content)
    assert refusal(lambda: read_corpus([str(path)])).startswith(complaint)


@pytest.mark.parametrize("name", ["w.xml", "w.xml.bz2", "w.xml.gz", "enwiki-pages-articles1.xml-p1p41242.bz2"])
def test_mediawiki_dump(write: Write, name: str) -> None:
    pages = [
        page("Ada", "'''Ada''' was [[London|in London]]."),
        page("Talk:Ada", "talk", ns=1),
        page("Adah", "#REDIRECT [[Ada]]", extra='<redirect title="Ada" />'),
        page("Adda", " #redirect [[Ada]]"),
        page("Ada/style.css", "p {}", model="css"),
        page("Blank", "{{stub}}"),
    ]
    path = write(name, dump(*pages))
    ada, blank = read_mediawiki(path)
    assert ada.fields == {"title": "Ada", "text": "Ada was in London."}
    assert ada.where == f"{path}: page 'Ada'"
    assert blank.fields["text"] == ""
    assert next(read_corpus([str(path)])) == RawDocument("Ada was in London.", ada.where)


def test_mediawiki_files_and_categories_in_the_wikis_own_language(write: Write) -> None:
    names = '<namespace key="0" /><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>'
    markup = "[[Datei:A.jpg|mini|Bild]]Text.\n[[Kategorie:B]]\n[[Bild:x]]"
    (record,) = read_mediawiki(write("w.xml", dump(page("T", markup), namespaces=names)))
    assert record.fields["text"] == "Text.\n\nBild:x"


def test_of_a_pages_history_only_the_newest_counts(write: Write) -> None:
    old = "<revision><text>old</text></revision>"
    (record,) = read_mediawiki(write("w.xml", dump(page("T", "new", extra=old))))
    assert record.fields["text"] == "new"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("\n" + dump(page("A", "x"))[:-20], "w.xml:2: broken or cut-off XML (no element found"),
        ("<html><p/></html>", "w.xml:1: not a MediaWiki dump: the outermost element is 'html'"),
        ("", "w.xml:1: broken or cut-off XML (no element found"),
        (dump(page("A", "x")).encode().replace(b"x", b"\xff", 1), "w.xml:1: broken or cut-off XML"),
        (dump(), "no documents in w.xml"),
    ],
)
def test_broken_mediawiki_dumps(write: Write, refusal: Refusal, content: str | bytes, complaint: str) -> None:
    path = write("w.xml", content)
    assert refusal(lambda: read_corpus([str(path)])).startswith(complaint)


@pytest.mark.parametrize("encoding", ["klingon", "gb18030"])
def test_a_dump_in_an_encoding_that_the_parser_does_not_know(write: Write, refusal: Refusal, encoding: str) -> None:
    path = write("w.xml", f'<?xml version="1.0" encoding="{encoding}"?><mediawiki></mediawiki>')
    message = refusal(lambda: read_mediawiki(path))
    assert message.startswith("w.xml:1: XML that cannot be read: ")
    assert message.endswith(": convert it to UTF-8")


def test_mediawiki_without_its_library_names_the_extra(
    write: Write, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("w.xml", dump(page("A", "x")))
    monkeypatch.delitem(sys.modules, "llara_cli.data.wikitext")
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    assert "pip install 'llara[wiki]'" in refusal(lambda: read_mediawiki(path))


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("l'amour'' unbalanced", "l'amour unbalanced"),
        ("[[a]], [[a|b]], [[:Category:C]], [[a#s|''c'']]", "a, b, Category:C, c"),
        ("x[[File:A.jpg|thumb|A [[b]] {{c}}]][[image:B.png]][[Category:C]][[de:X]]y", "xy"),
        ("[http://a.org the site] [http://a.org] http://b.org", "the site http://b.org"),
        ("a{{Infobox|b={{c}}}}d<!-- e -->f{{{1|g}}}", "adf"),
        ('a<ref name="b">c</ref><ref name="d" /> e<references /> f', "a e f"),
        ("H<sub>2</sub>O 5&nbsp;km &amp; &#65;<br />next", "H2O 5 km & A\nnext"),
        ("a <math>x^2</math><gallery>\nF.jpg|x\n</gallery> b <nowiki>[[c]]</nowiki> <code>f()</code>", "a b [[c]] f()"),
        ("a\n{| class=x\n! H\n|-\n| [[c]]\n|}\nb", "a\n\nb"),
        ("* one\n** two\n# three\n: four\n;five: six", "one\ntwo\nthree\nfour\nfive six"),
        ("Ada ({{lang|en|x}}; ) was", "Ada was"),
        ("__NOTOC__\na\n\n\n\nb", "a\n\nb"),
        ("lead\n== Empty ==\n== Full ==\ntext\n=== Sub ===\nmore\n== See ==\n{{d}}", "lead\n\nFull\ntext\n\nSub\nmore"),
        ("", ""),
    ],
)
def test_markup_to_text(markup: str, expected: str) -> None:
    assert plain_text(markup) == expected
