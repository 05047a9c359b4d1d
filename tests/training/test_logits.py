"""Losses are of the logits that a model computes itself, not of its bare products with the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from program import Llara
from tiny import SHAPE, TEXTS, make_tokenizer
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llara_cli.core.errors import UserError
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER, RECIPES
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.pretext import Example, PretextObjective


def granite(folder: Path, factor: float) -> Path:
    """A model whose head is ``factor`` times another's and whose logits are divided by it: the same logits."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = GraniteConfig(
        **SHAPE, num_key_value_heads=2, vocab_size=len(tokenizer), logits_scaling=factor, tie_word_embeddings=False,
        initializer_range=0.2,
    )  # fmt: skip
    with quiet_transformers():
        model = GraniteForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backend", ["full", "lora"])
def test_a_models_own_scaling_of_its_logits_counts(
    llara: Llara, corpus: Path, tmp_path: Path, recipe: str, backend: str
) -> None:
    length, found = {"paper": 64, "released": 128}[recipe], []
    for factor in (1.0, 8.0):
        model = granite(tmp_path / f"granite{factor:.0f}", factor)
        outcome = llara(
            "pretrain", corpus, "--model", model, "--recipe", recipe, "--backend", backend, "--max-steps", 1,
            "--batch-size", 8, "--max-length", length, "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        found.append(outcome.json["history"][0])
    assert found[0]["loss"] > 0
    for name in (name for name in ("loss", "ebae", "ebar", "lm") if found[0][name] is not None):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5)


class Doubled(LlamaForCausalLM):
    """A model that does to its logits what nobody foresees."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        made = super().forward(*args, **kwargs)
        made.logits = made.logits + made.logits.abs().sqrt()
        return made


class Twice(LlamaForCausalLM):
    """A model whose logits are those of two passes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)


class PerToken(LlamaForCausalLM):
    """A model that adds to the hidden states before the head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.lm_head.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


@pytest.mark.parametrize("kind", [Doubled, Twice, PerToken])
def test_logits_that_cannot_be_reproduced_are_refused_before_training(kind: type[PreTrainedModel]) -> None:
    tokenizer = TextTokenizer(make_tokenizer())
    model = Decoder(kind(LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=400)))
    objective = PretextObjective(model, PAPER, tokenizer.prompt_ids(PAPER), model.batching("bucketed", 512))
    ids = tokenizer.encode(TEXTS)
    with pytest.raises(UserError, match="llama: its logits cannot be computed from its hidden states"):
        objective.backward([Example(row, {"self": row, "next": row}) for row in ids])
    assert all(weight.grad is None for weight in model.model.parameters())


def test_the_trial_leaves_attention_in_blocks_as_it_is() -> None:
    model = Decoder(GraniteForCausalLM(GraniteConfig(**SHAPE, num_key_value_heads=2, vocab_size=400, logits_scaling=4)))
    assert model.attend_in_blocks()
    assert model.logits.scale == 0.25
    assert model.attention == "flex"


def test_hooks_of_the_trial_are_gone_and_dropout_is_back() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=400)).train()
    ids = torch.arange(7)[None]
    before: Tensor = model(input_ids=ids).logits
    assert Decoder(model).logits.scale == 1
    assert model.training
    assert torch.equal(model(input_ids=ids).logits, before)
