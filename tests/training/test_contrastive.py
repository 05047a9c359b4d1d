"""InfoNCE: masks, GradCache, dropout, ragged groups, what a row gives to a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXTS
from torch import nn

from llara_cli.data.training_rows import TrainingRow
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Sequencer
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import PAPER
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.engine import Engine
from llara_cli.training.groups import Group, draw_group, identity
from llara_cli.training.info_nce import ContrastiveLoss, contrast_mask, info_nce


def row(negatives: int, positives: int = 1, ids: bool = False) -> TrainingRow:
    """A training row of made-up texts."""
    own = tuple(f"p{i}" for i in range(positives))
    others = tuple(f"n{i}" for i in range(negatives))
    names: Any = (lambda texts: tuple(f"id-{t}" for t in texts)) if ids else (lambda texts: (None,) * len(texts))
    return TrainingRow("q", own, others, names(own), names(others))


def test_exactly_as_many_negatives_stay_in_order() -> None:
    assert draw_group(row(3), 3, (0, 0, 0)).passages == ["p0", "n0", "n1", "n2"]


def test_of_more_negatives_some_are_drawn_by_seed_and_epoch() -> None:
    drawn = [tuple(draw_group(row(20), 4, (0, epoch, 7)).passages) for epoch in range(5)]
    assert all(len(set(group)) == 5 for group in drawn)
    assert len(set(drawn)) > 1
    assert drawn[0] == tuple(draw_group(row(20), 4, (0, 0, 7)).passages)


def test_fewer_negatives_are_all_taken_then_repeated() -> None:
    passages = draw_group(row(2), 5, (0, 0, 0)).passages
    assert passages[:3] == ["p0", "n0", "n1"]
    assert len(passages) == 6
    assert set(passages[3:]) <= {"n0", "n1"}
    assert draw_group(row(0), 5, (0, 0, 0)).passages == ["p0"]


def test_one_of_several_positives_is_drawn() -> None:
    assert {draw_group(row(0, positives=3), 0, (0, epoch, 0)).passages[0] for epoch in range(30)} == {"p0", "p1", "p2"}


def groups() -> list[Group]:
    """Ragged: two negatives, none, one; a negative of the last row is the first row's positive."""
    rows = [
        TrainingRow("the sea?", (TEXTS[0],), (TEXTS[1], TEXTS[2]), ("a",), ("b", "c")),
        TrainingRow("bees?", (TEXTS[1],), (), ("b",), ()),
        TrainingRow("moon?", (TEXTS[3],), (TEXTS[0],), ("d",), ("a",)),
    ]
    return [draw_group(item, len(item.negatives), (0, 0, 0)) for item in rows]


def test_the_mask_leaves_out_the_querys_own_positives() -> None:
    mask = contrast_mask(groups(), in_batch=True, mask_false_negatives=True)
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    mask = contrast_mask(groups(), in_batch=False, mask_false_negatives=False)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_the_same_id_masks_even_where_the_text_differs() -> None:
    own = identity("x", "7")
    group = Group("q", ["x", "y"], [own, identity("y", "7")], own)
    assert contrast_mask([group], in_batch=True, mask_false_negatives=True).tolist() == [[True, False]]


def test_info_nce_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0]])
    passages = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    loss = info_nce(queries @ passages.T, torch.tensor([0]), mask, 0.5)
    assert float(loss) == pytest.approx(-1.2 + float(torch.tensor([1.2, 0.0]).logsumexp(0)))


class Wrapped(nn.Module):
    """A head's dropout in front of a linear layer, as LoRA has it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(self.dropout(hidden))
        return found


class Free(Decoder):
    """Attention that is said to skip what texts of a row do not see of each other: each forward is one row."""

    @property
    def rows_are_free(self) -> bool:
        return True


def objective(model: Path, kind: type[Decoder] = Decoder, **settings: Any) -> ContrastiveObjective:
    """In float64, with dropout in every layer."""
    source = ModelSource("tiny", str(model))
    causal = load_causal_lm(source, torch.float64)
    for layer in causal.model.layers:
        layer.mlp.down_proj = Wrapped(layer.mlp.down_proj)
    causal.train()
    sequencer = Sequencer(TextTokenizer.load(source), PAPER, {"query": 40, "passage": 60})
    return ContrastiveObjective(kind(causal), PAPER, sequencer, loss=ContrastiveLoss(0.05), seed=5, **settings)


def test_grad_cache_equals_one_graph_under_dropout(tiny_model: Path) -> None:
    """The same micro-batches, once with their graphs kept and once embedded twice."""
    kept, cached = objective(tiny_model, budget=10**6), objective(tiny_model, budget=10**6)
    microbatches = kept.microbatches(groups())
    assert len(microbatches.numbers) > 1
    numbers = range(len(microbatches.numbers))
    one = kept.backward(groups()).loss
    two = float(cached.backward_through(microbatches, numbers, groups(), Engine(), keep_graph=False))
    assert one == pytest.approx(two, abs=1e-12)
    for mine, theirs in zip(kept.decoder.model.parameters(), cached.decoder.model.parameters(), strict=True):
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-12, rtol=1e-9)


class WaitingError(Exception):
    """Another process has not embedded its share yet."""


class Shared(Engine):
    """One of several processes that run after one another: ``shares`` has what each has embedded."""

    def __init__(self, processes: int, rank: int, shares: dict[int, torch.Tensor]) -> None:
        self.processes, self.rank, self.shares = processes, rank, shares

    def total(self, values: torch.Tensor) -> torch.Tensor:
        self.shares[self.rank] = values
        if len(self.shares) < self.processes:
            raise WaitingError
        return torch.stack(list(self.shares.values())).sum(dim=0)


def train(ours: ContrastiveObjective, processes: int) -> list[float]:
    """Each process' loss; the sum of their gradients is in the weights."""
    shares: dict[int, torch.Tensor] = {}
    engines = [Shared(processes, rank, shares) for rank in range(processes)]
    for engine in engines[:-1]:
        with pytest.raises(WaitingError):
            ours.backward(groups(), engine)
    return [ours.backward(groups(), engine).loss for engine in reversed(engines)]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(
    "settings", [{"budget": 10**6}, {"budget": 60}, {"budget": 10**6, "chunk": 2}], ids=["whole", "cached", "chunks"]
)
@pytest.mark.parametrize("kind", [Decoder, Free], ids=["short rows", "whole rows"])
def test_packed_texts_give_the_gradients_of_texts_alone(
    tiny_model: Path, kind: type[Decoder], settings: dict[str, int], processes: int
) -> None:
    alone, packed = objective(tiny_model, budget=10**6), objective(tiny_model, kind, layout="packed", **settings)
    for each in (alone, packed):
        each.decoder.model.eval()  # dropout would be drawn otherwise
    assert alone.execution == {"layout": "bucketed"}
    assert packed.execution == {"layout": "packed"}
    wanted = alone.backward(groups()).loss
    assert train(packed, processes) == pytest.approx([wanted] * processes, abs=1e-9)
    for mine, theirs in zip(packed.decoder.model.parameters(), alone.decoder.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-9, rtol=1e-7)
    microbatches = packed.microbatches(groups(), processes)
    assert max(map(len, microbatches.numbers)) > 1 or "chunk" not in settings
    assert max(map(len, microbatches.numbers)) <= settings.get("chunk", 100)
    assert all(len(rows) == 1 for rows in microbatches.forwards) or kind is not Free or "chunk" in settings


def test_texts_are_packed_by_themselves_where_long_rows_are_free(tiny_model: Path) -> None:
    layouts = [objective(tiny_model, kind, budget=500).batching.layout for kind in (Decoder, Free)]
    assert layouts == ["bucketed", "packed"]


def test_grad_cache_embeds_the_largest_microbatch_once(tiny_model: Path) -> None:
    cached = objective(tiny_model, budget=10**6, chunk=1)
    microbatches = cached.microbatches(groups())
    ran: list[int] = []
    cached.decoder.body.register_forward_hook(lambda module, given, found: ran.append(found[0].shape[1]))
    cached.backward(groups())
    assert len(ran) == 2 * len(microbatches.numbers) - 1
    assert ran.count(max(ran)) % 2 == 1  # the others are embedded twice


def test_neither_logits_nor_hidden_states_between_layers_are_made(tiny_model: Path) -> None:
    ours = objective(tiny_model, budget=10**6)
    found: list[Any] = []
    ours.decoder.projection.register_forward_hook(lambda module, given, made: found.append("logits"))
    ours.decoder.body.register_forward_hook(lambda module, given, made: found.append(made.get("hidden_states")))
    ours.backward(groups())
    assert found
    assert set(found) == {None}


def test_dropout_is_drawn_anew_each_step_and_again_by_seed(tiny_model: Path) -> None:
    ours = objective(tiny_model, budget=10**6)
    first, second = ours.backward(groups()).loss, ours.backward(groups()).loss
    ours.seed = 5
    assert first != second
    assert ours.backward(groups()).loss == first
