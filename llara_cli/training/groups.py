"""Queries of a fine-tuning step, each with the passages drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llara_cli.data.training_rows import TrainingRow


@dataclass(frozen=True)
class Group:
    """A query with its passages, the positive first.

    ``identities``: what identifies each passage (id and text); ``own``: those of all the query's positives;
    ``scores``: a teacher's, one a passage, where the row has them.
    """

    query: str
    passages: Sequence[str]
    identities: Sequence[frozenset[str]]
    own: frozenset[str]
    scores: Sequence[float] | None = None


def identity(text: str, passage_id: str | None) -> frozenset[str]:
    """What identifies a passage when false negatives are masked: its text, and its id where it has one.

    Blanks around a text do not tell it from another: formats and tools strip them or do not.
    """
    return frozenset({f"text:{text.strip()}"} | ({f"id:{passage_id}"} if passage_id is not None else set()))


def draw_group(row: TrainingRow, negatives: int, seed: Sequence[int]) -> Group:
    """A row's passages for one step.

    Of several positives one is drawn by ``seed``. Exactly ``negatives`` negatives stay in order; of more that many are
    drawn; fewer are all taken, then repeated as drawn; none: none.
    """
    draw = np.random.default_rng(list(seed))
    positive = int(draw.integers(len(row.positives))) if len(row.positives) > 1 else 0
    have = len(row.negatives)
    chosen = list(range(have))
    if have > negatives:
        chosen = draw.choice(have, negatives, replace=False).tolist()
    elif 0 < have < negatives:
        chosen += draw.choice(have, negatives - have).tolist()
    passages = [row.positives[positive], *(row.negatives[number] for number in chosen)]
    ids = [row.positive_ids[positive], *(row.negative_ids[number] for number in chosen)]
    own = frozenset[str]().union(*map(identity, row.positives, row.positive_ids))
    return Group(row.query, passages, [*map(identity, passages, ids)], own, _scores(row, positive, chosen))


def _scores(row: TrainingRow, positive: int, chosen: Sequence[int]) -> list[float] | None:
    if row.positive_scores is None or (row.negative_scores is None and row.negatives):
        return None
    return [row.positive_scores[positive], *((row.negative_scores or ())[number] for number in chosen)]
