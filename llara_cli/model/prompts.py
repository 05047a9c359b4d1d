"""The prompts that follow a text, SELF for EBAE and NEXT for EBAR, and which of them queries and passages get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Branch = Literal["self", "next"]
"""SELF asks for the text itself (EBAE), NEXT for the text that follows (EBAR)."""
BRANCHES: tuple[Branch, Branch] = ("self", "next")

ASYMMETRIC: Mapping[str, Branch] = {"query": "next", "passage": "self"}
"""The next sentence stands for the passage that answers a query."""
SYMMETRIC: Mapping[str, Branch] = {"query": "self", "passage": "self"}
"""For texts of one kind: duplicate questions, arguments and counter-arguments."""


@dataclass(frozen=True)
class Prompt:
    """What follows a text. The embedding is read at ``slots``; no slots: at one end token (EOS) after the text."""

    text: str
    slots: tuple[str, ...] = ()


PAPER_PROMPTS: Mapping[Branch, Prompt] = {
    "self": Prompt("The original sentence: "),
    "next": Prompt("The next sentence: "),
}
"""The paper's prompts (arXiv 2312.15503, section 3.2)."""
RELEASED_PROMPTS: Mapping[Branch, Prompt] = {
    "self": Prompt('", summarize the above passage within eight words: ', tuple(f"<s{i}>" for i in range(1, 9))),
    "next": Prompt('", predict the following passage within eight words: ', tuple(f"<s{i}>" for i in range(9, 17))),
}
"""The prompts of the authors' code and the BAAI/LLARA-* checkpoints."""
