"""The contrastive loss: equal to sentence-transformers', masked by margin, distilled, at several widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss, contrast_mask, margin_mask


def groups(sizes: Sequence[int], scores: bool = False) -> list[Group]:
    """Groups of so many passages, no two alike."""
    found = []
    for number, size in enumerate(sizes):
        passages = [f"{number}-{place}" for place in range(size)]
        names = [identity(text, None) for text in passages]
        teacher = [float((7 * number + 3 * place) % 5) for place in range(size)] if scores else None
        found.append(Group(f"q{number}", passages, names, names[0], teacher))
    return found


def embeddings(sizes: Sequence[int], dim: int = 12) -> torch.Tensor:
    """Random vectors for queries and passages."""
    torch.manual_seed(3)
    return torch.randn(len(sizes) + sum(sizes), dim, dtype=torch.float64)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("queries", "negatives"), [(6, 0), (5, 1), (4, 3)])
def test_it_is_sentence_transformers_loss(queries: int, negatives: int, cached: bool) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors = embeddings([1 + negatives] * queries).requires_grad_()
    passages = vectors[queries:].reshape(queries, 1 + negatives, -1)
    columns = [vectors[:queries], *(passages[:, place] for place in range(1 + negatives))]
    if cached:
        rival: Any = losses.CachedMultipleNegativesRankingLoss(nn.Sequential(nn.Identity()), scale=50.0)
        theirs = rival.calculate_loss([[column] for column in columns])
    else:
        rival = losses.MultipleNegativesRankingLoss(None, scale=50.0)
        theirs = rival.compute_loss_from_embeddings(columns, torch.zeros(queries))
    (gradient,) = torch.autograd.grad(theirs, vectors, retain_graph=True)
    ours = ContrastiveLoss(1 / 50, mask_false_negatives=False)(vectors, groups([1 + negatives] * queries))
    (own,) = torch.autograd.grad(ours, vectors)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-8)


def test_a_passage_far_above_the_positive_is_no_negative() -> None:
    scores = torch.tensor([[0.5, 0.59, 0.61, 0.2], [0.9, 0.3, 0.95, 0.4]])
    mask = margin_mask(scores, torch.tensor([0, 3]), 0.1)
    assert mask.tolist() == [[True, True, False, True], [False, True, False, True]]


def test_the_positive_counts_even_with_a_negative_margin() -> None:
    """A margin below zero asks negatives to be that much worse."""
    mask = margin_mask(torch.tensor([[0.5, 0.45, 0.3]]), torch.tensor([0]), -0.1)
    assert mask.tolist() == [[True, False, True]]


def test_the_margin_changes_the_loss_of_a_batch() -> None:
    vectors = embeddings([2, 2])
    vectors[3] = vectors[0]  # the first query's negative is the query itself
    plain, masked = (ContrastiveLoss(0.1, margin=margin)(vectors, groups([2, 2])) for margin in (None, 0.1))
    assert masked < plain


def test_distillation_is_the_divergence_over_a_querys_own_passages() -> None:
    sizes = [3, 2]
    vectors, items = embeddings(sizes), groups(sizes, scores=True)
    ours = ContrastiveLoss(0.2, distillation=1.0)(vectors, items)
    unit = functional.normalize(vectors, dim=-1)
    wanted = []
    for number, (start, size) in enumerate([(2, 3), (5, 2)]):
        student = (unit[start : start + size] @ unit[number]) / 0.2
        teacher = torch.tensor(items[number].scores, dtype=torch.float64)
        wanted.append(functional.kl_div(student.log_softmax(0), teacher.softmax(0), reduction="sum"))
    torch.testing.assert_close(ours, torch.stack(wanted).mean())


def test_a_share_of_the_loss_is_distilled_and_its_gradient_is_finite() -> None:
    sizes = [3, 1, 2]
    vectors, items = embeddings(sizes).requires_grad_(), groups(sizes, scores=True)
    whole = [float(ContrastiveLoss(0.2, distillation=share)(vectors, items).detach()) for share in (0.0, 1.0)]
    mixed = ContrastiveLoss(0.2, distillation=0.25)(vectors, items)
    mixed.backward()
    assert float(mixed.detach()) == pytest.approx(0.75 * whole[0] + 0.25 * whole[1])
    assert vectors.grad is not None
    assert bool(vectors.grad.isfinite().all())


def test_several_widths_count_alike() -> None:
    vectors, items = embeddings([2, 2, 2]), groups([2, 2, 2])
    parts = [float(ContrastiveLoss(0.1)(vectors[:, :width], items)) for width in (12, 6, 3)]
    both = ContrastiveLoss(0.1, dims=(12, 6, 3))(vectors, items)
    assert float(both) == pytest.approx(sum(parts) / 3)


def test_scores_are_precise_where_the_forwards_are_not() -> None:
    """At temperature 0.01 a cosine in bf16 is off by up to 0.4 in the logit."""
    vectors, items = embeddings([3, 3]).float(), groups([3, 3])
    plain = ContrastiveLoss(0.01)(vectors, items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ContrastiveLoss(0.01)(vectors, items) == plain


def test_a_positive_of_another_row_with_the_same_query_is_no_negative() -> None:
    items = groups([1, 1, 1])
    again = Group(items[0].query, items[1].passages, items[1].identities, items[1].own)
    mask = contrast_mask([items[0], again, items[2]], in_batch=True, mask_false_negatives=True)
    assert mask.int().tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_blanks_around_a_text_do_not_tell_it_from_another() -> None:
    assert identity(" text\n", None) == identity("text", None) != identity("te xt", None)


def slow_mask(items: Sequence[Group], *, in_batch: bool, mask_false_negatives: bool) -> list[list[bool]]:
    """The rule, pair by pair."""
    owners = [number for number, group in enumerate(items) for _ in group.passages]
    names = [name for group in items for name in group.identities]
    firsts = {owners.index(number): number for number in range(len(items))}

    def own(group: Group) -> set[str]:
        return {name for item in items if item.query == group.query for name in item.own}

    return [
        [
            firsts.get(column) == row
            or ((in_batch or owners[column] == row) and not (mask_false_negatives and names[column] & own(group)))
            for column in range(len(names))
        ]
        for row, group in enumerate(items)
    ]


_PASSAGES = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    in_batch=st.booleans(),
    masked=st.booleans(),
    queries=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_the_mask_follows_its_rule(
    rows: list[list[tuple[int, int]]], in_batch: bool, masked: bool, queries: list[int]
) -> None:
    items = []
    for row, query in zip(rows, queries, strict=False):
        names = [identity(f"t{text}", f"i{name}" if name else None) for text, name in row]
        items.append(Group(f"q{query}", ["x"] * len(row), names, names[0]))
    found = contrast_mask(items, in_batch=in_batch, mask_false_negatives=masked)
    assert found.tolist() == slow_mask(items, in_batch=in_batch, mask_false_negatives=masked)
