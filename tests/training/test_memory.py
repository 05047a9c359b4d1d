"""What is counted of the memory that backward needs, and what is chosen by it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from program import Llara
from tiny import SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig

from llara_cli.core.reporter import LlaraWarning, Reporter
from llara_cli.core.workspace import Workspace
from llara_cli.model.decoder import Decoder
from llara_cli.model.source import resolve
from llara_cli.pipelines.pretrain import pretraining
from llara_cli.pipelines.train import TrainingRun
from llara_cli.training import memory
from llara_cli.training.config import PretrainConfig
from llara_cli.training.memory import Forwards, Needs, choose_forwards, fit_forwards, recomputed
from llara_cli.training.pretext import Example

GB = 10**9
SEVEN = Needs(fixed=0, layer=0, token=50_000, layer_token=140_000, recomputed_token=8_192)
"""About a Llama of 7 B in bf16, of 32 layers."""


def llama(layers: int) -> Decoder:
    config = LlamaConfig(**(SHAPE | {"num_hidden_layers": layers}), num_key_value_heads=2, vocab_size=400)
    return Decoder(AutoModelForCausalLM.from_config(config).train())


@pytest.mark.parametrize("context", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["fp32", "bf16"])
def test_what_shallow_models_take_tells_what_a_deep_one_takes(context: Any) -> None:
    def weights(decoder: Decoder) -> float:
        return sum(weight.nbytes for weight in decoder.model.parameters())

    needs = memory.count_needs(llama, weights, context)
    rows, layers = 5, 6
    tokens, deep = rows * memory.TRIAL_TOKENS, llama(layers)
    always = memory.RESERVED + tokens * needs.layer_token  # the layer that backward is in
    found = weights(deep) + memory.kept_bytes(deep, rows, context)
    assert found == needs.total(tokens, layers, 0) - always
    deep.recompute_in_backward(3)
    found = weights(deep) + memory.kept_bytes(deep, rows, context)
    # a layer that is computed again keeps no weight in the compute dtype either
    cast = 0 if context is nullcontext else needs.layer - 4 * sum(p.numel() for p in deep.body.layers[0].parameters())
    assert found == needs.total(tokens, layers, 3) - always - 2 * cast


@pytest.mark.parametrize(
    ("free", "chosen"),
    [(85 * GB, Forwards(16384, 0)), (25 * GB, Forwards(5120, 0)), (12 * GB, Forwards(4096, 2)),
     (5 * GB, Forwards(10240, 1)), (1 * GB, Forwards(2048, 1)), (0, Forwards(1024, 1))],
)  # fmt: skip
def test_large_forwards_come_before_recomputation_and_that_before_small_ones(free: float, chosen: Forwards) -> None:
    assert choose_forwards(free, SEVEN, 32, longest=512) == chosen


def test_a_model_that_cannot_compute_again_has_smaller_forwards() -> None:
    stubborn = replace(SEVEN, recomputed_token=None)
    assert choose_forwards(12 * GB, stubborn, 32, longest=512) == Forwards(2048, 0)


@given(
    st.floats(0, 2e11), st.integers(1, 80), st.integers(1, 8192), st.none() | st.integers(1, 32768),
    st.sampled_from([None, True, False]),
)  # fmt: skip
def test_what_is_chosen_fits_where_anything_does(
    free: float, layers: int, longest: int, tokens: int | None, recompute: bool | None
) -> None:
    chosen = choose_forwards(free, SEVEN, layers, longest=longest, tokens=tokens, recompute=recompute)
    least = SEVEN.total(max(tokens or memory.STEP, longest), layers, 0 if recompute is False else 1)
    assert SEVEN.total(max(chosen.tokens, longest), layers, chosen.every) <= max(free, least)
    assert tokens in (None, chosen.tokens)
    assert recompute in (None, chosen.every == 1)


def test_every_number_of_layers_that_can_be_spread_evenly_is_tried() -> None:
    assert [recomputed(7, every) for every in memory.recompute_intervals(7)] == [0, 1, 2, 3, 4, 7]


def pretraining_with(free: int, corpus: Path, model: Path, root: Path, steps: int) -> TrainingRun[Example]:
    """A run on a device with ``free`` bytes of free memory."""
    workspace = Workspace(root)
    config = PretrainConfig(max_length=60, batch_size=8, max_steps=steps)
    run = pretraining(workspace, resolve(str(model), workspace), [str(corpus)], config, "m")
    return replace(run, free_memory=lambda device: free)


def test_a_run_goes_by_the_memory_that_is_free(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Room for one layer's tensors: the layers are computed again, which changes gradients by noise at most."""
    flags = ("--model", tiny_model, "--max-length", 60, "--batch-size", 8, "--max-steps", 2, "--name", "m", "--json")
    expected = llara("pretrain", corpus, *flags, workspace=tmp_path / "plain").json
    free = memory.RESERVED * 10 // 9 + 12_400_000
    plan = pretraining_with(free, corpus, tiny_model, tmp_path / "ws", 2).plan()
    assert (plan.micro_batch_tokens, plan.recomputed_layers) == (4096, 2)
    with caplog.at_level("INFO", "llara"):
        result = pretraining_with(free, corpus, tiny_model, tmp_path / "ws", 2).run(restart=False)
    assert "4096 tokens per forward, 2 of 2 layers recomputed" in caplog.text
    manifest = json.loads((tmp_path / "ws/models/m/manifest.json").read_text())
    assert manifest["execution"]["gradient_checkpointing"] == 1
    assert manifest["execution"]["micro_batch_tokens"] == 4096
    for one, two in zip(expected["history"], result["history"], strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_a_run_goes_on_where_memory_cannot_be_measured() -> None:
    def fail() -> Needs:
        raise ValueError("no such number\nof layers")

    with pytest.warns(LlaraWarning, match=r"no such number of layers\): using 4096 tokens per forward"):
        chosen = fit_forwards(10 * GB, fail, 2, Reporter(), longest=60, tokens=None, recompute=None)
    assert chosen == Forwards(4096, 0)


def test_a_run_that_does_not_fit_says_so(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = pretraining_with(GB, corpus, tiny_model, tmp_path / "ws", 1)
    with pytest.warns(LlaraWarning, match=r"4\.3 GB of GPU memory are needed, 0\.9 GB are free"):
        run.run(restart=False)
