"""Encoding and exact search on one GPU: tokens/s of both layouts, searches against the memory's bandwidth.

    python benchmarks/gpu_search.py [--shapes 135M,7B] [--rows 5000000] [--json FILE]

Random weights and tokens; lengths are drawn like those of passages (mean 180). The share is of the rate of a large bf16
matrix product in the same run, at 2 FLOPs a weight of the linear layers and token.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gpu import PROMPTS, SHAPES
from texts import train_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from llara_cli import registry
from llara_cli.model.backbone import Backbone
from llara_cli.model.encoder import Encoder, Sequencer, Sequences
from llara_cli.model.layout import Tree
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER
from llara_cli.model.speed import matmul_rate
from llara_cli.protocols import IndexOptions, Vectors

QUERIES, K = 1000, 100


def trees(count: int, vocabulary: int) -> Sequences:
    """Texts of random tokens with the prompt of SELF."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.0, 0.6, count), 8, 500).astype(int)
    found = [Tree([1, *draw.integers(11, vocabulary, size)], [PROMPTS.prompts["self"]]) for size in lengths]
    return Sequences(found, int(lengths.sum()), 0, 0)


def encode(shape: str, layout: str, device: torch.device, peak: float, count: int) -> dict[str, Any]:
    """Tokens a second of one layout, or why there are none."""
    try:
        with quiet_transformers(), torch.device(device):
            config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        backbone = Backbone(model.eval())
        sequencer = Sequencer(train_tokenizer(["the sea"], 300), PAPER, {"passage": 512})  # the tokens are random
        encoder = Encoder(backbone, PAPER, sequencer, None, layout, print)
        texts = trees(count, SHAPES[shape]["vocab_size"])
        encoder.compute(trees(count // 4, SHAPES[shape]["vocab_size"]))  # compiles, fills caches
        started = time.perf_counter()
        encoder.compute(texts)
        seconds = time.perf_counter() - started
    except (RuntimeError, ImportError) as error:
        return {"shape": shape, "layout": layout, "failed": str(error).splitlines()[0][:200]}
    linear = sum(m.weight.numel() for m in backbone.body.modules() if isinstance(m, torch.nn.Linear))
    rate = sum(len(tree) for tree in texts.trees) / seconds
    return {"shape": shape, "layout": layout, "tokens_per_second": rate, "share_of_peak": 2 * linear * rate / peak}


class Random:
    """Vectors made block by block."""

    def __init__(self, count: int, dim: int) -> None:
        self.count, self.dim = count, dim
        self._block = np.random.default_rng(0).standard_normal((16384, dim), dtype=np.float32)

    def __iter__(self) -> Any:
        for start in range(0, self.count, len(self._block)):
            yield self._block[: self.count - start]


def search(rows: int, dim: int, device: torch.device) -> dict[str, Any]:
    """Seconds of 1 and of 1,000 queries, beside reading the vectors once from the GPU's memory."""
    index = registry.load("index", "exact").build(Random(rows, dim), IndexOptions(device=str(device)))
    queries: Vectors = np.random.default_rng(1).standard_normal((QUERIES, dim), dtype=np.float32)
    seconds = {}
    for count in (1, QUERIES):
        started = time.perf_counter()
        index.search(queries[:count], K)
        seconds[str(count)] = time.perf_counter() - started
    return {"rows": rows, "dim": dim, "seconds": seconds, "gb_per_second": rows * dim * 4 / seconds["1"] / 1e9}


def main(
    shapes: str = "135M,7B",
    texts: int = 4096,
    rows: int = 5_000_000,
    dim: int = 768,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Try every layout on every shape, then search."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = max(matmul_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 512) for _ in range(3))
    found: dict[str, Any] = {"device": str(device), "matmul_tflops": peak / 1e12, "encode": []}
    for shape in shapes.split(","):
        for layout in ("bucketed", "packed"):
            found["encode"].append(encode(shape, layout, device, peak, texts))
            print(json.dumps(found["encode"][-1]), flush=True)
    found["exact"] = search(rows, dim, device)
    print(json.dumps(found["exact"]))
    if as_json is not None:
        as_json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
