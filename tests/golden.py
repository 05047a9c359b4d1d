"""The golden model and rows as the library's own objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llara_cli.data.pretraining_corpus import ReadyRow
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.recipe import Recipe
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.examples import ExampleBuilder
from llara_cli.training.pretext import Example


def source(golden: Path) -> ModelSource:
    """The tiny random Llama."""
    return ModelSource("golden", str(golden / "model"))


def fresh_model(golden: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder of its own, in train mode."""
    model = load_causal_lm(source(golden), dtype)
    model.train()
    return Decoder(model)


@cache
def tokenizer(golden: Path) -> TextTokenizer:
    """Its tokenizer."""
    return TextTokenizer.load(source(golden))


def rows(golden: Path, name: str) -> list[dict[str, Any]]:
    """An input file."""
    return [json.loads(line) for line in (golden / "inputs" / f"{name}.jsonl").read_text().splitlines()]


def examples(golden: Path, items: Sequence[dict[str, Any]], recipe: Recipe, max_length: int) -> list[Example]:
    """Ready rows through the project's own builder."""
    text = tokenizer(golden)
    builder = ExampleBuilder(text, recipe, text.prompt_ids(recipe), max_length)
    ready = (ReadyRow(i["input"], i["output_summarize"], i["output_predict"], "golden") for i in items)
    return list(builder.examples(ready))


def gradient_norms(model: torch.nn.Module) -> dict[str, float]:
    """L2 norms in float64, of the parts that the golden numbers name."""
    parts = {
        "embed_tokens": "embed_tokens",
        "l0_q_proj": "layers.0.self_attn.q_proj",
        "lm_head": "lm_head",
        "global": "",
    }
    squares = {
        name: weight.grad.double().square().sum()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return {
        part: float(torch.stack([value for name, value in squares.items() if key in name]).sum().sqrt())
        for part, key in parts.items()
        if any(key in name for name in squares)
    }
