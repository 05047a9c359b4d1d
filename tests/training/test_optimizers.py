"""Every optimizer learns, resumes exactly, and bf16 weights lose no small step."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TEXTS
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from llara_cli.core.errors import UserError
from llara_cli.cpu import lean_training
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training import checkpoints
from llara_cli.training.config import OptimizerConfig, PretrainConfig
from llara_cli.training.optimizers import STATE_BYTES, make_optimizer

SETTINGS = OptimizerConfig(learning_rate=1e-3)
CHOICES = [*((name, "fp32") for name in STATE_BYTES), ("adamw-8bit", "bf16")]


class Run:
    """A model that learns to predict the next token of fixed texts."""

    def __init__(self, folder: Path, name: str, weights: str, rate: float) -> None:
        self.source = ModelSource("tiny", str(folder))
        dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        self.model: PreTrainedModel = load_causal_lm(self.source, dtype)
        settings = replace(SETTINGS, name=name, weights=weights, learning_rate=rate)
        try:
            self.optimizer = make_optimizer(list(self.model.parameters()), settings)
        except UserError as error:
            pytest.skip(str(error))
        self.batches = TextTokenizer.load(self.source).encode(TEXTS)

    def steps(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> None:
        """Steps ``start`` to ``stop``, each on one text."""
        for step in range(start, stop):
            torch.manual_seed(step)
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                self.loss(self.model, step % len(self.batches)).backward()
            with torch.compiler.set_stance("force_eager"):
                self.optimizer.step()

    def loss(self, model: PreTrainedModel, number: int) -> torch.Tensor:
        """Mean cross-entropy of one text."""
        ids = torch.tensor([self.batches[number]])
        logits = model(ids).logits[0].float()
        return cross_entropy(logits[:-1], ids[0, 1:])

    @torch.no_grad()
    def total(self) -> float:
        """The loss over all texts, computed in fp32 whatever the weights are kept in."""
        exact = load_causal_lm(self.source, torch.float32)
        exact.load_state_dict({name: weight.float() for name, weight in self.model.state_dict().items()})
        return float(sum(self.loss(exact, number) for number in range(len(self.batches))) / len(self.batches))


@pytest.mark.parametrize(("name", "weights"), CHOICES)
def test_a_run_resumed_from_a_checkpoint_ends_where_the_whole_one_does(
    tiny_model: Path, tmp_path: Path, name: str, weights: str
) -> None:
    whole = Run(tiny_model, name, weights, 1e-3)
    before = whole.total()
    whole.steps(0, 12)
    assert whole.total() < before
    first, second = Run(tiny_model, name, weights, 1e-3), Run(tiny_model, name, weights, 1e-3)
    first.steps(0, 7)
    checkpoints.save(tmp_path, first.model, first.optimizer, 7)
    assert checkpoints.restore(tmp_path, second.model, second.optimizer) == 7
    second.steps(7, 12)
    for wanted, found in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(wanted, found)


def drop(folder: Path, name: str, weights: str, dtype: torch.dtype) -> float:
    """How far 200 steps at the paper's rate of 1e-5 bring the loss down."""
    run = Run(folder, name, weights, 1e-5)
    before = run.total()
    run.steps(0, 200, dtype)
    return before - run.total()


def test_a_checkpoint_is_on_the_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves the old one or the new one."""
    synced: list[int] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    for step in (1, 2):
        checkpoints.keep_best(tmp_path, torch.nn.Linear(2, 2), step)
    assert {file.stat().st_ino for file in (tmp_path / "best").iterdir()} <= set(synced)


def test_full_training_in_bf16_learns_as_in_fp32(tiny_model: Path) -> None:
    wanted = drop(tiny_model, "adamw", "fp32", torch.float32)
    assert wanted > 0
    assert drop(tiny_model, "adamw", "fp32", torch.bfloat16) == pytest.approx(wanted, rel=0.01)


def test_bf16_weights_learn_where_they_are_rounded_at_random(tiny_model: Path) -> None:
    wanted = drop(tiny_model, "adamw", "fp32", torch.float32)
    rounded = drop(tiny_model, "adamw-8bit", "bf16", torch.bfloat16)
    assert rounded == pytest.approx(wanted, rel=0.1)  # the noise of rounding on a model of few weights
    plain = Run(tiny_model, "adamw", "fp32", 1e-5)
    plain.model.to(torch.bfloat16)
    before = plain.total()
    plain.steps(0, 200, torch.bfloat16)
    assert before - plain.total() < 0.5 * wanted  # what rounding to the nearest loses


@pytest.mark.parametrize("how", ["plain", "lean", "recomputed"])
def test_what_many_forwards_add_to_bf16_weights_arrives(tiny_model: Path, how: str) -> None:
    """Each adds a thousandth of the first one's gradient: to a sum in bf16, nothing."""
    run = Run(tiny_model, "adamw-8bit", "bf16", 1e-5)
    run.model.train()
    if how == "recomputed":
        Decoder(run.model).recompute_in_backward()

    def add_gradients(share: float) -> None:
        with lean_training() if how == "lean" else nullcontext():
            loss = run.loss(run.model, 0)
        (loss * share).backward()

    add_gradients(1)
    first = {name: weight.grad.clone() for name, weight in run.model.named_parameters() if weight.grad is not None}
    for _ in range(64):
        add_gradients(2**-10)
    for name, weight in run.model.named_parameters():
        torch.testing.assert_close(weight.grad, first[name].float() * (1 + 64 / 1024), rtol=1e-5, atol=1e-9, msg=name)
    before = run.total()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    with torch.compiler.set_stance("force_eager"):
        run.optimizer.step()
    assert run.total() < before


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"`optimizer.name` must be adamw, .* or paged-adamw-8bit, not 'sgd'"):
        PretrainConfig(optimizer=replace(SETTINGS, name="sgd"))
    with pytest.raises(UserError, match=r"which only `optimizer.name='adamw-8bit'` does"):
        PretrainConfig(optimizer=replace(SETTINGS, weights="bf16"))
    with pytest.raises(UserError, match=r"is for `backend='full'`"):
        PretrainConfig(optimizer=replace(SETTINGS, weights="bf16", name="adamw-8bit"), backend="lora")
