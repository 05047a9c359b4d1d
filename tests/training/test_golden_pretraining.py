"""The pretext losses, gradients and trajectories equal what the authors' own code gives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden as g
import pytest
import torch

from llara_cli.model.batching import Batching
from llara_cli.model.recipe import PAPER, RELEASED
from llara_cli.training.pretext import PretextObjective

LOSS, GRADIENT = 1e-5, 1e-4
BATCHING = Batching("packed", 4096, 256)
CASE = re.compile(r"(own|edge)_c(\d+)(_keepstop)?_(all|row\d+)")


def released_cases() -> list[str]:
    """Every key of the reference, by construction."""
    keys = [f"own_c{c}_{row}" for c in (128, 512) for row in ["all", *(f"row{i}" for i in range(6))]]
    keys += [f"edge_c{c}_{row}" for c in (128, 512) for row in ("all", "row0", "row1")]
    return keys + [f"own_c{c}_keepstop_all" for c in (128, 512)]


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, Any]:
    """Losses and gradient norms of the authors' code."""
    found: dict[str, Any] = json.loads((golden / "pretrain_reference.json").read_text())
    return found


def test_every_case_of_the_reference_is_tried(reference: dict[str, Any]) -> None:
    assert {key for key in reference if CASE.fullmatch(key)} == set(released_cases())


@pytest.mark.parametrize(
    ("layout", "joint", "budget"),
    [("packed", True, 4096), ("packed", True, 100), ("bucketed", True, 1000), ("bucketed", False, 4096)],
)
@pytest.mark.parametrize("key", released_cases())
def test_released_losses_and_gradients(
    golden: Path, reference: dict[str, Any], key: str, layout: Any, joint: bool, budget: int
) -> None:
    match = CASE.fullmatch(key)
    assert match is not None
    recipe = replace(RELEASED, drop_stop_words=match[3] is None)
    items = g.rows(golden, f"pretrain_{match[1]}")
    batch = g.examples(golden, [items[i] for i in reference[key]["rows"]], recipe, int(match[2]))
    decoder = g.fresh_model(golden)
    batching = Batching(layout, budget, 256)
    terms = PretextObjective(decoder, recipe, g.tokenizer(golden).prompt_ids(recipe), batching, joint).backward(batch)
    wanted = reference[key]
    assert terms.loss == pytest.approx(wanted["loss"], rel=LOSS)
    assert terms.lm == pytest.approx(wanted["ar_loss"], rel=LOSS)
    assert terms.ebae == pytest.approx(wanted["bow_summarize_loss"], rel=LOSS)
    assert terms.ebar == (wanted["bow_predict_loss"] and pytest.approx(wanted["bow_predict_loss"], rel=LOSS))
    assert terms.tokens == wanted["n_ar_labels"]
    assert g.gradient_norms(decoder.model) == pytest.approx(wanted["grad_norm"], rel=GRADIENT)


def test_released_targets_are_the_authors(golden: Path, reference: dict[str, Any]) -> None:
    batch = g.examples(golden, g.rows(golden, "pretrain_own"), RELEASED, 128)
    assert [len(example.targets["self"]) for example in batch] == reference["own_c128_all"][
        "n_unique_targets_summarize"
    ]
    assert [len(example.targets["next"]) for example in batch] == reference["own_c128_all"]["n_unique_targets_predict"]


def test_released_trajectory(golden: Path, reference: dict[str, Any]) -> None:
    wanted = reference["_trajectory_adamw_lr1e-3_clip1.0_c128"]["own"]
    items = g.rows(golden, "pretrain_own")
    decoder = g.fresh_model(golden)
    objective = PretextObjective(decoder, RELEASED, g.tokenizer(golden).prompt_ids(RELEASED), BATCHING)
    optimizer = torch.optim.AdamW(decoder.model.parameters(), lr=1e-3, weight_decay=0.0)
    losses, norms = [], []
    for numbers in wanted["rows"]:
        optimizer.zero_grad()
        batch = g.examples(golden, [items[number] for number in numbers], RELEASED, 128)
        losses.append(objective.backward(batch).loss)
        norms.append(float(torch.nn.utils.clip_grad_norm_(decoder.model.parameters(), 1.0)))
        optimizer.step()
    assert losses == pytest.approx(wanted["loss"], rel=LOSS)
    assert norms == pytest.approx(wanted["grad_norm_before_clip"], rel=GRADIENT)


@pytest.mark.parametrize("targets", ["all", "unique"])
def test_paper_losses(golden: Path, targets: Any) -> None:
    wanted = json.loads((golden / "paper_v1.json").read_text())
    recipe = replace(PAPER, targets=targets)
    batch = g.examples(golden, g.rows(golden, "pretrain_own"), recipe, 113)
    decoder = g.fresh_model(golden, torch.float64)
    terms = PretextObjective(decoder, recipe, g.tokenizer(golden).prompt_ids(recipe), BATCHING).backward(batch)
    means = wanted["own_fp64"]["loss_mean"]
    assert [list(example.text) for example in batch] == wanted["own_ids"]["text"]
    assert terms.ebae == pytest.approx(means[f"ebae_{targets}"], rel=1e-6)
    assert terms.ebar == pytest.approx(means[f"ebar_{targets}"], rel=1e-6)
    assert terms.loss == pytest.approx(wanted["own_fp64"][f"total_{targets}"], rel=1e-6)
    assert terms.lm is None
    if targets == "all":
        norms = wanted["own_fp64"]["grad_norm_total_all"]
        assert g.gradient_norms(decoder.model) == pytest.approx(norms, rel=GRADIENT)
