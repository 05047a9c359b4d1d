"""Pre-training on one GPU: tokens/s and MFU of several shapes and settings; FlexAttention beside dense SDPA.

    python benchmarks/gpu.py [--shapes 135M,1B,7B] [--length 1024] [--json FILE]

Random weights, random tokens. MFU counts 6 FLOPs a weight of the linear layers and token (4 where the base is frozen)
and no recomputation, over the rate of a large bf16 matrix product in the same run; HFU counts the recomputation too.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llara_cli.model.adapted import quantise
from llara_cli.model.backbone import Backbone
from llara_cli.model.batching import Batching
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER
from llara_cli.model.speed import matmul_rate
from llara_cli.model.tokens import PromptIds
from llara_cli.settings import OptimiserSettings
from llara_cli.training.optimisers import make_optimiser
from llara_cli.training.pretext import Example, PretextObjective

SHAPES: dict[str, dict[str, int]] = {
    "135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3},
    "1B": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
           "num_attention_heads": 32, "num_key_value_heads": 4},
    "7B": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip
PROMPTS = PromptIds((1,), {"self": (5, 6, 7, 8, 2), "next": (5, 9, 10, 8, 2)}, 1, 1)
STEPS = 4


@dataclass(frozen=True)
class Setting:
    """What is tried: backend, attention in blocks or dense, recomputation, tokens of a forward."""

    backend: str
    blocks: bool
    checkpointing: bool
    budget: int


@contextmanager
def model_of(shape: str, setting: Setting, device: torch.device) -> Iterator[PreTrainedModel]:
    """Random weights on the device: bf16 where the model is large or its base frozen, fp32 else."""
    lean = setting.backend != "full" or shape == "7B"
    with quiet_transformers(), torch.device(device):
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if lean else torch.float32)
    model.config.use_cache = False
    if setting.backend == "qlora":
        from peft import LoraConfig, get_peft_model

        quantised = quantise(model, torch.bfloat16).to(device)
        adapted = get_peft_model(quantised, LoraConfig(r=64, lora_alpha=16, target_modules="all-linear"))
        model = adapted.get_base_model()
    if setting.checkpointing:
        Backbone(model).recompute_in_backward()
    yield model.train()
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def examples(count: int, length: int, vocabulary: int) -> list[Example]:
    """Full texts of random tokens."""
    draw = np.random.default_rng(0)
    size = length - PROMPTS.overhead()
    texts = draw.integers(11, vocabulary, (count + 1, size))
    return [Example(text, {"self": text, "next": following}) for text, following in pairwise(texts)]


def measure(shape: str, setting: Setting, length: int, batch: int, device: torch.device, peak: float) -> dict[str, Any]:
    """Rates of one setting, or why there are none."""
    try:
        with model_of(shape, setting, device) as model:
            seconds, memory = steps_of(model, shape, setting, length, batch, device)
            linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
            if setting.backend == "qlora":
                linear = sum(m.in_features * m.out_features for m in model.modules() if hasattr(m, "in_features"))
    except (RuntimeError, ImportError) as error:
        return asdict(setting) | {"shape": shape, "failed": str(error).splitlines()[0][:200]}
    rate = batch * length / seconds
    each = 4 if setting.backend == "qlora" else 6
    mfu = each * linear * rate / peak
    hfu = (each + 2) * linear * rate / peak if setting.checkpointing else mfu
    told = {"shape": shape, "tokens_per_second": rate, "mfu": mfu, "hfu": hfu, "peak_memory_gb": memory / 1e9}
    return asdict(setting) | told


def steps_of(
    model: PreTrainedModel, shape: str, setting: Setting, length: int, batch: int, device: torch.device
) -> tuple[float, int]:
    """Median seconds of a step, updates included, and the peak of memory."""
    backbone = Backbone(model)
    row = setting.budget if setting.blocks and backbone.attend_in_blocks() else 256
    batching = Batching("packed", setting.budget, row, 128 if setting.blocks else 1)
    objective = PretextObjective(backbone, PAPER, PROMPTS, batching)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    lean = weights[0].dtype == torch.bfloat16
    chosen = OptimiserSettings(
        learning_rate=1e-5, name="adamw-8bit" if lean else "adamw", weights="bf16" if lean else "fp32"
    )
    optimiser = make_optimiser(weights, chosen)
    items = examples(batch, length, SHAPES[shape]["vocab_size"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(STEPS):
        _wait(device)
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            objective.backward(items)
        optimiser.step()
        _wait(device)
        times.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return float(np.median(times[1:])), memory


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(
    shapes: str = "135M,1B,7B",
    length: int = 1024,
    batch: int = 64,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Try every setting on every shape; write what is known after each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = max(matmul_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 512) for _ in range(3))
    found: list[dict[str, Any]] = []
    for shape, backend in product(shapes.split(","), ("full", "qlora")):
        for blocks, checkpointing, budget in product((True, False), (False, True), (8192, 16384)):
            setting = Setting(backend, blocks, checkpointing, budget)
            found.append(measure(shape, setting, length, batch, device, peak))
            print(json.dumps(found[-1]), flush=True)
            if as_json is not None:
                result = {"device": str(device), "matmul_tflops": peak / 1e12, "length": length, "runs": found}
                as_json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
