"""LongRoPE goes by the longest text of a forward: a batch must give each text what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SHAPE, TEXTS, make_tokenizer
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM

from llara_cli.model.architecture import rope_switch
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.recipe import PAPER
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.engine import Engine
from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss
from llara_cli.training.pretext import Example, PretextObjective

SWITCH = 56
"""Positions above which the long factors hold: between the shortest and the longest of the texts with their prompts."""


@pytest.fixture
def decoder() -> Decoder:
    """A Phi-3 whose two sets of factors are far apart."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": SWITCH,
    }  # fmt: skip
    settings: dict[str, Any] = SHAPE | {"num_key_value_heads": 2, "vocab_size": 400, "initializer_range": 0.2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Decoder(
        Phi3ForCausalLM(Phi3Config(**settings, **ids, rope_parameters=rope, original_max_position_embeddings=SWITCH))
    )


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


@pytest.mark.parametrize(
    ("config", "switch"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 40}}, 40),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 9}}}, 9),
        ({"rope_scaling": {"type": "su", "long_factor": [2.0]}, "original_max_position_embeddings": 30}, 30),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 40}}, None),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, None),
        ({"rope_scaling": None}, None),
        ({}, None),
    ],
)
def test_where_the_factors_switch(config: dict[str, Any], switch: int | None) -> None:
    assert rope_switch(SimpleNamespace(**config, max_position_embeddings=128)) == switch


def around_the_switch(tokenizer: TextTokenizer) -> list[str]:
    """Texts of like length, which would share a forward, with spans on both sides of the switch."""
    overhead = tokenizer.prompt_ids(PAPER).overhead(["self"])
    texts = [" ".join(TEXTS)[:length] for length in range(1, 300)]
    spans = [len(row) + overhead for row in tokenizer.encode(texts)]
    chosen = [texts[spans.index(span)] for span in range(SWITCH - 3, SWITCH + 4)]
    return chosen[::2] + chosen[1::2]


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
@pytest.mark.parametrize("joint", [True, False])
def test_pretext_losses_of_a_batch_are_those_of_its_texts(
    decoder: Decoder, tokenizer: TextTokenizer, layout: str, joint: bool
) -> None:
    prompts = tokenizer.prompt_ids(PAPER)
    texts = tokenizer.encode(around_the_switch(tokenizer))
    examples = [Example(row, {"self": row[:9], "next": row[-5:]}) for row in texts]
    objective = PretextObjective(decoder, PAPER, prompts, decoder.batching(layout, 2000), joint)
    together = objective.backward(examples)
    gradients = [weight.grad.clone() for weight in decoder.model.parameters() if weight.grad is not None]
    decoder.model.zero_grad()
    alone = [objective.backward([example]).loss for example in examples]
    assert together.loss == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    for mine, theirs in zip(gradients, decoder.model.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine, theirs.grad / len(alone), atol=1e-5, rtol=1e-4)


class Seen(ContrastiveLoss):
    """Keeps the embeddings."""

    embeddings = torch.empty(0)

    def __call__(self, embeddings: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
        Seen.embeddings = embeddings.detach()
        return super().__call__(embeddings, groups)


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_embeddings_of_a_contrastive_batch_are_those_of_its_texts(
    decoder: Decoder, tokenizer: TextTokenizer, layout: str
) -> None:
    sequencer = Sequencer(tokenizer, PAPER, {"query": 200, "passage": 200})
    query, *passages = around_the_switch(tokenizer)
    groups = [Group(query, passages, [identity(text, None) for text in passages], identity(passages[0], None))]
    objective = ContrastiveObjective(decoder, PAPER, sequencer, 2000, Seen(), layout=layout)
    assert objective.backward(groups, Engine()).texts == 1 + len(passages)
    found = nn.functional.normalize(Seen.embeddings, dim=-1)
    encoder = Encoder(decoder, PAPER, sequencer)
    alone = [encoder.encode([query], "query").vectors]
    alone += [encoder.encode([text], "passage").vectors for text in passages]
    torch.testing.assert_close(found, torch.from_numpy(np.concatenate(alone)), atol=1e-5, rtol=0)
