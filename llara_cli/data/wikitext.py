"""MediaWiki markup -> plain text, by the parser ``mwparserfromhell`` (the extra ``wiki``).

Lossy on purpose, like WikiExtractor: templates, tables, references, galleries, formulas, files and categories are
dropped; links, emphasis and lists keep their text.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

_WORDLESS_TAG = re.compile(
    "categorytree|ce|chem|gallery|graph|hiero|imagemap|indicator|inputbox|mapframe|maplink|math|ref|references|score|"
    "section|source|syntaxhighlight|table|templatedata|templatestyles|timeline"
)
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTIED_BRACKETS = re.compile(r" \([\s,;:]*\)")
_LEFT_OVER_EMPHASIS = re.compile("'{2,}")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


def plain_text(markup: str, wordless_namespaces: Collection[str] = ("file", "image", "category")) -> str:
    """The text of a page. A heading is kept, as a line of its own, if text follows it before the next one.

    ``wordless_namespaces``: prefixes, in lower case, of links that show no text: files and categories.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for node in mwparserfromhell.parse(markup).nodes:
        if isinstance(node, Heading):
            sections.append((_tidy(_text(node.title, wordless_namespaces)), []))
        else:
            sections[-1][1].append(_node_text(node, wordless_namespaces))
    blocks = [(heading, _tidy("".join(parts))) for heading, parts in sections]
    return "\n\n".join(f"{heading}\n{body}".strip() for heading, body in blocks if body)


def _text(code: Wikicode | None, wordless: Collection[str]) -> str:
    return "" if code is None else "".join(_node_text(node, wordless) for node in code.nodes)


def _node_text(node: Node, wordless: Collection[str]) -> str:
    match node:
        case Text():
            return str(node.value)
        case HTMLEntity():
            return str(node.normalize())
        case Tag():
            return _tag_text(node, wordless)
        case Wikilink():
            return _link_text(node, wordless)
        case ExternalLink():
            return _text(node.title, wordless) if node.brackets else str(node.url)
        case _:
            return ""


def _tag_text(tag: Tag, wordless: Collection[str]) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return "\n"
    return "" if _WORDLESS_TAG.fullmatch(name) else _text(tag.contents, wordless)


def _link_text(link: Wikilink, wordless: Collection[str]) -> str:
    target = str(link.title).strip()
    if target.partition(":")[0].strip().lower() in wordless or (link.text is None and _LANGUAGE_LINK.match(target)):
        return ""
    return target.removeprefix(":") if link.text is None else _text(link.text, wordless)


def _tidy(text: str) -> str:
    """Collapse spaces, strip line ends, and keep at most one blank line in a row."""
    text = _EMPTIED_BRACKETS.sub("", _LEFT_OVER_EMPHASIS.sub("", _MAGIC_WORD.sub("", text)))
    return _BLANK_LINES.sub("\n\n", _LINE_EDGES.sub("\n", _SPACES.sub(" ", text))).strip()
