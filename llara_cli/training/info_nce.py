"""The fine-tuning loss: InfoNCE over cosine / temperature (arXiv 2312.15503, section 4.1; as in RepLLaMA).

Also what later work added: negatives masked by margin (Qwen3 Embedding, arXiv 2506.05176), distillation
from a teacher's scores (as in FlagEmbedding), and the same loss at several widths (Matryoshka, arXiv 2205.13147).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.model.to_device import to_device
from llara_cli.training.groups import Group

_NEVER = float("-inf")


def contrast_mask(groups: Sequence[Group], *, in_batch: bool, mask_false_negatives: bool) -> Tensor:
    """(queries, passages) True where a passage is in a query's softmax.

    The query's own positive always is. Other rows' passages are only if ``in_batch``. With ``mask_false_negatives``,
    passages with the id or text of one of the query's positives are not, including positives in other rows of the
    same query, as data sets of pairs have one row per positive.
    """
    identities = [identity for group in groups for identity in group.identities]
    mask = torch.ones(len(groups), len(identities), dtype=torch.bool)
    if mask_false_negatives:
        for row, column in _copies(groups, identities):
            mask[row, column] = False
    if not in_batch:
        mask &= own_passages(groups)
    mask[torch.arange(len(groups)), positive_columns(groups)] = True
    return mask


def contrasts(mask: Tensor) -> bool:
    """Whether any query has a negative; without one the loss is 0, and there is nothing to learn."""
    return bool((mask.sum(dim=1) > 1).any())


def _copies(groups: Sequence[Group], identities: Sequence[frozenset[str]]) -> list[tuple[int, int]]:
    """Pairs of a query and a passage with the id or text of one of the query's positives."""
    columns: dict[str, list[int]] = {}
    for column, names in enumerate(identities):
        for name in names:
            columns.setdefault(name, []).append(column)
    own: dict[str, set[str]] = {}
    for group in groups:
        own.setdefault(group.query, set()).update(group.own)
    return [
        (row, column)
        for row, group in enumerate(groups)
        for name in own[group.query]
        for column in columns.get(name, ())
    ]


def positive_columns(groups: Sequence[Group]) -> Tensor:
    """(queries,) Column of each query's positive."""
    sizes = torch.tensor([len(group.passages) for group in groups])
    return sizes.cumsum(0) - sizes


def own_passages(groups: Sequence[Group]) -> Tensor:
    """(queries, passages) True where a passage belongs to the query's own group."""
    owners = torch.repeat_interleave(torch.tensor([len(group.passages) for group in groups]))
    return torch.arange(len(groups))[:, None] == owners


def info_nce(scores: Tensor, positives: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """``-log exp(s+ / t) / sum exp(s / t)``, mean over queries.

    Args:
        scores: (queries, passages) cosines.
        positives: (queries,) column of each query's positive.
        mask: (queries, passages), see ``contrast_mask``.
    """
    return functional.cross_entropy((scores / temperature).masked_fill(~mask, _NEVER), positives)


def margin_mask(scores: Tensor, positives: Tensor, margin: float) -> Tensor:
    """(queries, passages) False where a passage scores more than ``margin`` above the query's positive."""
    limit = scores.gather(1, positives[:, None]) + margin
    return (scores <= limit).scatter(1, positives[:, None], torch.ones_like(limit, dtype=torch.bool))


def distillation(scores: Tensor, teacher: Tensor, own: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher) || softmax(scores / temperature)) over each query's own passages, mean over queries.

    Args:
        scores: (queries, passages) cosines.
        teacher: (passages,) its score of each passage for the query that owns it.
        own: (queries, passages), see ``own_passages``.
    """
    target = teacher.expand_as(scores).masked_fill(~own, _NEVER).log_softmax(dim=1)
    predicted = (scores / temperature).masked_fill(~own, _NEVER).log_softmax(dim=1)
    difference = (target - predicted).masked_fill(~own, 0.0)  # masked: infinity minus infinity
    return (target.exp() * difference).sum(dim=1).mean()


@dataclass(frozen=True)
class ContrastiveLoss:
    """The loss of one optimizer batch, from the embeddings of all its texts.

    Attributes:
        in_batch: other rows' passages are negatives too.
        mask_false_negatives: copies of the query's positives are not negatives.
        margin: passages that score more than this above the positive are not negatives; None: no limit.
        distillation: weight of the distillation loss, from 0 to 1.
        dims: widths at which the loss is computed and averaged (Matryoshka); empty: the whole width.
    """

    temperature: float = 0.01
    in_batch: bool = True
    mask_false_negatives: bool = True
    margin: float | None = None
    distillation: float = 0.0
    dims: Sequence[int] = ()
    normalize: bool = True

    def __call__(self, embeddings: Tensor, groups: Sequence[Group]) -> Tensor:
        """``embeddings``: (queries + passages, dim), not normalized, the queries first; a scalar in their dtype.

        Computed precisely whatever the forwards' dtype: at temperature 0.01 bf16 would be off by a third.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            mask = self.mask(embeddings, groups)
            positives = to_device(positive_columns(groups), embeddings.device)
            widths = self.dims or (embeddings.shape[1],)
            losses = [self._at(embeddings, groups, width, mask, positives) for width in widths]
            return torch.stack(losses).mean()

    @torch.no_grad()
    def mask(self, embeddings: Tensor, groups: Sequence[Group]) -> Tensor:
        """(queries, passages) True where a passage is in a query's softmax; see ``contrast_mask``."""
        mask = to_device(self.static_mask(groups), embeddings.device)
        if self.margin is None:
            return mask
        with torch.autocast(embeddings.device.type, enabled=False):
            scores = self._scores(embeddings, len(groups), embeddings.shape[1])
        return mask & margin_mask(scores, to_device(positive_columns(groups), embeddings.device), self.margin)

    def static_mask(self, groups: Sequence[Group]) -> Tensor:
        """The part of ``mask`` that depends on the texts only."""
        return contrast_mask(groups, in_batch=self.in_batch, mask_false_negatives=self.mask_false_negatives)

    def _at(self, embeddings: Tensor, groups: Sequence[Group], width: int, mask: Tensor, positives: Tensor) -> Tensor:
        scores = self._scores(embeddings, len(groups), width)
        loss = info_nce(scores, positives, mask, self.temperature)
        if not self.distillation:
            return loss
        teacher_scores = torch.tensor([score for group in groups for score in group.scores or ()], dtype=scores.dtype)
        teacher, own = to_device(teacher_scores, scores.device), to_device(own_passages(groups), scores.device)
        term = distillation(scores, teacher, own, self.temperature)
        return (1 - self.distillation) * loss + self.distillation * term

    def _scores(self, embeddings: Tensor, queries: int, width: int) -> Tensor:
        """(queries, passages) Cosines of the first ``width`` dimensions."""
        cut = embeddings[:, :width]
        unit = functional.normalize(cut, dim=-1) if self.normalize else cut
        return unit[:queries] @ unit[queries:].T
