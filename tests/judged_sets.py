"""Small judged collections in BEIR layout, and archives of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from program import write_jsonl

WORDS = ("sea", "boat", "fish", "rain", "harbour", "net", "storm", "light", "captain", "island", "wind", "wave")
FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip


def write_set(
    folder: Path,
    texts: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Sequence[tuple[str, str, int]],
    split: str = "test",
) -> Path:
    """A folder in BEIR layout."""
    write_jsonl(folder / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in texts.items()])
    write_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    (folder / "qrels").mkdir(exist_ok=True)
    rows = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels)
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def random_set(folder: Path, seed: int, *, documents: int = 30, queries: int = 8, split: str = "test") -> Path:
    """Texts of a few words; graded judgments of some of them; two queries have none."""
    random = np.random.default_rng(seed)
    texts = {f"d{n}": " ".join(random.choice(WORDS, random.integers(4, 12))) for n in range(documents)}
    asked = {f"q{n}": " ".join(random.choice(WORDS, 2)) for n in range(queries)}
    qrels = [
        (query, str(document), int(random.integers(0, 3)))
        for query in list(asked)[: queries - 2]
        for document in random.choice(list(texts), 6, replace=False)
    ]
    return write_set(folder, texts, asked, qrels, split)


def archive(folder: Path, name: str) -> bytes:
    """The folder as BEIR offers it: a zip with everything below ``name``."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.write(path, f"{name}/{path.relative_to(folder).as_posix()}")
    return made.getvalue()
