"""However many forwards a step or a shard has, the host waits for the device as often as for one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEXTS
from waits import noted_waits, to_meta

from llara_cli.model import encoder
from llara_cli.model.batching import LAYOUTS, Batching, LayoutName
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.prefetch import while_computing
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.sequences import place_some
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training import contrastive, pretext
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss
from llara_cli.training.pretext import Example, PretextObjective

CUDA = torch.device("cuda")
FEW, MANY = 10_000, 100
"""Tokens of a forward that takes everything, and of one that takes little."""


class Counted(Decoder):
    """Counts its forwards."""

    forwards = 0

    def hidden(self, token_rows: Any) -> torch.Tensor:
        self.forwards += 1
        return super().hidden(token_rows)


def load(model: Path, recipe: Recipe) -> tuple[Counted, TextTokenizer]:
    """A model of shapes, and its tokenizer."""
    source = ModelSource("tiny", str(model))
    tokenizer = TextTokenizer.load(source).with_tokens(recipe.new_tokens)
    causal = load_causal_lm(source, torch.float32)
    add_new_tokens(causal, TextTokenizer.load(source), recipe.new_tokens, 0)
    decoder = Counted(causal)
    to_meta(decoder)
    decoder.forwards = 0
    return decoder, tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=lambda recipe: recipe.name)
def test_pre_training_waits_once_a_step(tiny_model: Path, recipe: Recipe, layout: LayoutName) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 300, length) for length in range(1, 60, 10)]
    examples = [Example(text, {"self": text[:9], "next": text[-5:]}) for text in texts]
    for budget in (FEW, MANY):
        decoder, tokenizer = load(tiny_model, recipe)
        batching = Batching(layout, budget, forward_tokens=budget)
        objective = PretextObjective(decoder, recipe, tokenizer.prompt_ids(recipe), batching)
        with noted_waits(decoder) as waits:
            objective.backward(examples)
        assert waits == ["fetched"]
        assert (decoder.forwards == 1) == (budget == FEW)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("budget", [FEW, MANY])
def test_fine_tuning_waits_for_the_loss_alone(tiny_model: Path, budget: int, chunk: int | None) -> None:
    decoder, tokenizer = load(tiny_model, PAPER)
    sequencer = Sequencer(tokenizer, PAPER, {"query": 40, "passage": 60})
    groups = [
        Group(text, TEXTS[:2], [identity(other, None) for other in TEXTS[:2]], identity(text, None), [1.0, 0.5])
        for text in TEXTS[:2]
    ]
    loss = ContrastiveLoss(0.05, margin=0.1, distillation=0.5, dims=(8, 16))
    objective = ContrastiveObjective(decoder, PAPER, sequencer, budget, loss, chunk)
    with noted_waits(decoder) as waits:
        objective.backward(groups)
    assert waits == ["read", "read"]
    assert decoder.forwards > 2 * (budget == MANY or chunk is not None)


@pytest.mark.parametrize("budget", [FEW, MANY])
def test_encoding_waits_for_the_vectors_of_a_shard_once(tiny_model: Path, budget: int) -> None:
    decoder, tokenizer = load(tiny_model, PAPER)
    sequencer = Sequencer(tokenizer, PAPER, {"passage": 60})
    with noted_waits(decoder) as waits:
        Encoder(decoder, PAPER, sequencer, budget).encode([" ".join(TEXTS[: 1 + n % 3]) for n in range(6)], "passage")
    assert waits == ["fetched"]
    assert (decoder.forwards > 3) == (budget == MANY)


@pytest.mark.parametrize("work", ["pre-training", "fine-tuning", "encoding"])
def test_layouts_are_made_beside_the_computation(tiny_model: Path, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    makers: set[str] = set()

    def place_in_rows(*args: Any, **settings: Any) -> Any:
        makers.add(threading.current_thread().name)
        return place_some(*args, **settings)

    for module in (contrastive, encoder, pretext):
        monkeypatch.setattr(module, "place_some", place_in_rows)
    for module in (encoder, pretext):  # as for a GPU
        monkeypatch.setattr(module, "while_computing", lambda made, of, device: while_computing(made, of, CUDA))
    source = ModelSource("tiny", str(tiny_model))
    decoder, tokenizer = Decoder(load_causal_lm(source, torch.float32)), TextTokenizer.load(source)
    sequencer = Sequencer(tokenizer, PAPER, {"query": 40, "passage": 60})
    if work == "pre-training":
        examples = [Example(tokenizer.encode([text])[0], {"self": [7], "next": [8]}) for text in TEXTS]
        PretextObjective(decoder, PAPER, tokenizer.prompt_ids(PAPER), Batching("packed", MANY)).backward(examples)
    elif work == "fine-tuning":
        names = [identity(text, None) for text in TEXTS]
        groups = [Group(text, TEXTS, names, identity(text, None)) for text in TEXTS[:2]]
        ContrastiveObjective(decoder, PAPER, sequencer, MANY).backward(groups)
    else:
        Encoder(decoder, PAPER, sequencer, MANY).encode(TEXTS, "passage")
    assert makers
    assert threading.main_thread().name not in makers


def test_a_cpu_computes_and_lays_out_by_turns() -> None:
    makers = set(while_computing(lambda item: threading.current_thread().name, range(3), torch.device("cpu")))
    assert makers == {threading.main_thread().name}
