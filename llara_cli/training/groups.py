"""The queries of a fine-tuning step, each with the passages drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llara_cli.data.training_rows import TrainingRow


@dataclass(frozen=True)
class Group:
    """A query with its passages, the positive first.

    ``identities``: of each passage, its id and text; ``own``: the same of all the query's positives;
    ``scores``: a teacher's score of each passage, if the row has them.
    """

    query: str
    passages: Sequence[str]
    identities: Sequence[frozenset[str]]
    own: frozenset[str]
    scores: Sequence[float] | None = None


def identity(text: str, passage_id: str | None) -> frozenset[str]:
    """What identifies a passage when false negatives are masked: its text, and its id if it has one.

    White space around the text is ignored, as some formats and tools strip it.
    """
    return frozenset({f"text:{text.strip()}"} | ({f"id:{passage_id}"} if passage_id is not None else set()))


def draw_group(row: TrainingRow, negatives: int, seed: Sequence[int]) -> Group:
    """A row's passages for one step.

    One of several positives is drawn by ``seed``. Of more than ``negatives`` negatives, that many are drawn; exactly
    that many are taken in order; fewer are all taken, and some drawn again; of none there is none.
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
