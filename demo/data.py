"""Real English text that lies on any machine with Python: the documentation of installed packages.

A documented function or class gives a pair: the summary line of its docstring is the query, the prose below it the
passage that answers it. Packages for training and for the held-out test differ.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAIN = {"small": ("pandas", "sympy"), "large": ("pandas", "sympy", "datasets", "transformers", "torch")}
HELD_OUT = ("scipy", "networkx", "numpy")
_SECTION = re.compile(
    r"^\s*(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes|References|See Also|Attributes)\b:?\s*$"
    r"|^\s*(>>>|\.\. |```|[-=]{4,}|:param|:return)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Entry:
    """One documented thing."""

    name: str
    summary: str
    body: str


def entries(package: str) -> Iterator[Entry]:
    """Documented functions and classes of an installed package, in the order of its files."""
    root = Path(sysconfig.get_paths()["purelib"]) / package
    for path in sorted(root.rglob("*.py")):
        if "test" in path.as_posix().rpartition(package)[2]:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = path.relative_to(root.parent).with_suffix("").as_posix().replace("/", ".")
        yield from filter(None, (_entry(module, node) for node in ast.walk(tree)))


def _entry(module: str, node: ast.AST) -> Entry | None:
    """A node's entry, where its docstring has a summary and at least two sentences of prose below it."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not (docstring := ast.get_docstring(node)):
        return None
    summary, _, rest = docstring.partition("\n\n")
    body = " ".join(_SECTION.split(rest, maxsplit=1)[0].split())
    summary = " ".join(summary.split()).rstrip(".")
    prose = 20 <= len(body.split()) <= 120 and body.count(". ") + body.endswith(".") >= 2 and "|" not in body
    if not prose or not 4 <= len(summary.split()) <= 16 or not (summary + body).isascii():
        return None
    return Entry(f"{module}.{node.name}", summary, body)


def distinct(packages: Sequence[str]) -> list[Entry]:
    """Entries of several packages, each summary and each body once."""
    found: dict[str, Entry] = {}
    bodies = set()
    for package in packages:
        for entry in entries(package):
            if entry.summary not in found and entry.body not in bodies:
                found[entry.summary] = entry
                bodies.add(entry.body)
    return list(found.values())


def modules(found: Sequence[Entry]) -> list[str]:
    """The documentation of each module as one running text, so that a passage has a successor."""
    texts: dict[str, list[str]] = {}
    for entry in found:
        texts.setdefault(entry.name.rpartition(".")[0], []).append(f"{entry.summary}. {entry.body}")
    return ["\n".join(parts) for parts in texts.values() if len(parts) > 1]


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build(folder: Path, size: str, passages: int, queries: int, words: int) -> str:
    """Write ``corpus.jsonl`` (text), ``train.jsonl`` (pairs) and ``heldout/`` (BEIR layout); what there is of each.

    Held-out passages are cut at ``words`` words.
    """
    train, test = distinct(TRAIN[size]), distinct(HELD_OUT)
    shuffle = random.Random(0)
    shuffle.shuffle(test)
    test = test[:passages]
    corpus = modules(train)
    shuffle.shuffle(corpus)
    shuffle.shuffle(train)
    write_jsonl(folder / "corpus.jsonl", ({"text": text} for text in corpus))
    write_jsonl(folder / "train.jsonl", ({"query": e.summary, "pos": [e.body], "neg": []} for e in train))
    held_out = folder / "heldout"
    short = {entry.name: " ".join(entry.body.split()[:words]) for entry in test}
    write_jsonl(held_out / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for name, text in short.items()))
    asked = dict(zip((f"q{number}" for number in range(queries)), test, strict=False))
    write_jsonl(held_out / "queries.jsonl", ({"_id": name, "text": entry.summary} for name, entry in asked.items()))
    qrels = "".join(f"{name}\t{entry.name}\t1\n" for name, entry in asked.items())
    (held_out / "qrels").mkdir(parents=True, exist_ok=True)
    (held_out / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels, encoding="utf-8")
    held = f"{len(test)} passages and {len(asked)} queries held out"
    return f"{len(corpus)} module texts and {len(train)} pairs to train on, {held}"
