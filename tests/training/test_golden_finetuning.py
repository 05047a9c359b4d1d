"""InfoNCE losses, gradients and the trajectory equal what the authors' own code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden as g
import pytest
import torch

from llara_cli.model.encoder import Sequencer
from llara_cli.model.recipe import RELEASED
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, Any]:
    """Losses of the authors' code."""
    found: dict[str, Any] = json.loads((golden / "finetune_reference.json").read_text())
    return found


def groups(golden: Path) -> list[Group]:
    """Positive and first three negatives of each row."""
    found = []
    for row in g.rows(golden, "finetune_own"):
        passages = [row["pos"][0], *row["neg"][:3]]
        names = [identity(passage, None) for passage in passages]
        found.append(Group(row["query"], passages, names, names[0]))
    return found


def objective(golden: Path, temperature: float, **settings: Any) -> ContrastiveObjective:
    """On a fresh golden model."""
    sequencer = Sequencer(g.tokenizer(golden), RELEASED, {"query": 64, "passage": 160})
    split = {name: settings.pop(name) for name in ("budget", "chunk") if name in settings}
    loss = ContrastiveLoss(temperature, **({"mask_false_negatives": False} | settings))
    return ContrastiveObjective(g.fresh_model(golden), RELEASED, sequencer, loss=loss, **({"budget": 10**6} | split))


@pytest.mark.parametrize("split", [{}, {"budget": 300}, {"chunk": 2}])
@pytest.mark.parametrize(
    ("key", "temperature", "normalize"),
    [("own_g4_norm_T0.01", 0.01, True), ("own_g4_norm_T0.05", 0.05, True), ("own_g4_nonorm_T0.01", 1.0, False)],
)
def test_losses_and_gradients(
    golden: Path, reference: dict[str, Any], key: str, temperature: float, normalize: bool, split: dict[str, int]
) -> None:
    assert reference[key]["effective_temperature"] == temperature
    ours = objective(golden, temperature, normalize=normalize, **split)
    terms = ours.backward(groups(golden))
    norms = {part: value for part, value in reference[key]["grad_norm"].items() if value is not None}
    assert terms.loss == pytest.approx(reference[key]["loss"], rel=1e-5)
    assert g.gradient_norms(ours.decoder.model) == pytest.approx(norms, rel=1e-4)


def test_masking_copies_of_the_own_positive(golden: Path, reference: dict[str, Any]) -> None:
    terms = objective(golden, 0.01, mask_false_negatives=True).backward(groups(golden))
    masked = reference["own_g4_norm_T0.01"]["loss_fp64_if_copies_of_own_positive_were_masked__NOT_reference"]
    assert terms.loss == pytest.approx(masked, rel=1e-5)


def test_trajectory(golden: Path, reference: dict[str, Any]) -> None:
    ours = objective(golden, 0.01)
    optimizer = torch.optim.AdamW(ours.decoder.model.parameters(), lr=1e-4, weight_decay=0.0)
    losses = []
    for _ in reference["own_trajectory_adamw_lr1e-4_clip1.0_norm_T0.01"]:
        optimizer.zero_grad()
        losses.append(ours.backward(groups(golden)).loss)
        torch.nn.utils.clip_grad_norm_(ours.decoder.model.parameters(), 1.0)
        optimizer.step()
    assert losses == pytest.approx(reference["own_trajectory_adamw_lr1e-4_clip1.0_norm_T0.01"], rel=1e-4)
