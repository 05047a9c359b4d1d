"""Float8 changes how layers multiply, not what a model's weights are called, are, or are saved as."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from program import Llara
from tiny import ARCHITECTURES
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llara_cli.core import registry
from llara_cli.core.errors import UserError
from llara_cli.model.decoder import Decoder
from llara_cli.model.float8 import compute_in_float8, refuse_without_float8
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.sequences import Tree, place_in_rows

LAYOUT = place_in_rows([Tree([5, 6, 7, 8, 9], [[3, 4], [6, 7, 8]]), Tree([11] * 9, [[3, 4]])], [[0, 1]])


def model() -> PreTrainedModel:
    """A tiny random Llama."""
    torch.manual_seed(0)
    with quiet_transformers():
        made: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES["wide"](vocab_size=97))
    return made


def hidden_and_gradients(decoder: Decoder) -> list[Tensor]:
    """Hidden states at the slots, and the gradients of the sum of their squares."""
    slots = decoder.slots(LAYOUT)
    slots.square().sum().backward()
    return [slots.detach(), *(w.grad for w in decoder.body.parameters() if w.grad is not None)]


def test_results_are_near_and_weights_are_saved_as_plain_ones(tmp_path: Path) -> None:
    made, plain = model(), model()
    decoder = Decoder(made)
    decoder.multiply_in_float8(emulate=True)
    assert decoder.runs_jointly()
    for mine, theirs in zip(hidden_and_gradients(decoder), hidden_and_gradients(Decoder(plain)), strict=True):
        difference = float((mine - theirs).norm() / theirs.norm())
        assert 1e-4 < difference < 0.2
    registry.load("training", "full")().save(made, tmp_path, torch.float32)
    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    found, wanted = loaded.state_dict(), plain.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_cannot_be_is_refused(
    llara: Llara, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="capability"):
        refuse_without_float8(torch.device("cpu"), torch.bfloat16)
    run = ("pretrain", corpus, "--model", tiny_model, "--max-length", 60, "--compute")
    for flags, why in (
        (("float8",), "capability 8.9"), (("float8", "--backend", "lora"), "--backend full"), (("fp4",), "fp4")
    ):  # fmt: skip
        done = llara(*run, *flags)
        assert (done.code, done.out) == (2, "")
        assert why in done.error
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 1}
    with quiet_transformers():
        odd = AutoModelForCausalLM.from_config(LlamaConfig(**shape, vocab_size=97))
    with pytest.raises(UserError, match="multiples of 16"):
        compute_in_float8(odd.model)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match="torchao"):
        compute_in_float8(model().model)
