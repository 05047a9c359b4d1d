"""Steps of pre-training: tokens a second, share of the peak, memory; ours in one of its settings, or a rival."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from rivals import Authors, TwoPasses
from torch import nn

from gpu.bench import Bench, options_of
from gpu.models import PROMPTS, examples, random_model
from gpu.shapes import Logits, training_flops
from llara_cli.cpu import gradient_dtype
from llara_cli.model.adapter_checkpoint import quantize
from llara_cli.model.decoder import Decoder
from llara_cli.model.recipe import PAPER
from llara_cli.training.config import OptimizerConfig
from llara_cli.training.optimizers import make_optimizer, uncompiled_on_cpu
from llara_cli.training.pretext import Example, PretextObjective

Step = Callable[[Sequence[Example]], float]
TOY_STEP, TOY_FORWARD = 64, 16
"""How many times fewer tokens a step and a forward have on a CPU."""
LENGTH, TOY_LENGTH = 1024, 128
RATE = 1e-5


def parser() -> argparse.ArgumentParser:
    """What a stage of pre-training may be."""
    options = options_of(__doc__)
    options.add_argument("--shape", default="135M")
    options.add_argument("--system", default="llara", choices=("llara", "authors", "two passes"))
    options.add_argument("--attention", default="auto")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--recompute", type=int, nargs="?", const=1, help="layers of which one is recomputed")
    options.add_argument("--float8", action="store_true")
    options.add_argument("--qlora", action="store_true")
    options.add_argument("--rounding", action="store_true", help="the optimizer of the command's --weights bf16")
    options.add_argument("--budgets", default="16384", help="tokens of a forward")
    options.add_argument("--tokens", type=int, default=65536, help="tokens of a step")
    options.add_argument("--lengths", default="full")
    options.add_argument("--steps", type=int, default=3)
    return options


def name_of(options: argparse.Namespace) -> str:
    """The setting in words."""
    parts = [options.system if options.system != "llara" else f"llara, attention {options.attention}"]
    parts += [word for word in ("compile", "float8", "qlora", "rounding") if getattr(options, word)]
    if options.recompute:
        parts.append("recompute" if options.recompute == 1 else f"recompute 1 layer of {options.recompute}")
    return ", ".join(parts)


class Pretraining:
    """A model with an optimizer, and the way its gradients are taken."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench, self.options = bench, options
        self.shape = bench.shape(options.shape)
        self.lean = options.shape == "7B"
        model = random_model(self.shape, bench.dtype if self.lean or options.qlora else torch.float32, bench.device)
        self.adapter = None
        if options.qlora:
            model = self._adapted(model)
            self.adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.decoder = Decoder(model.train())
        self._set_up()
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = self._optimizer()

    def _adapted(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        quantized = quantize(model, torch.bfloat16).to(self.bench.device)
        return get_peft_model(quantized, LoraConfig(r=64, lora_alpha=16, target_modules="all-linear")).get_base_model()

    def _set_up(self) -> None:
        if self.options.recompute:
            self.decoder.recompute_in_backward(self.options.recompute)
        if self.options.attention != "auto":
            with self.mixed():
                self.decoder.use_attention(self.options.attention)
        if self.options.float8:
            self.decoder.multiply_in_float8(emulate=self.bench.toy)
        if self.options.compile:
            self.bench.compile_layers(self.decoder)

    def mixed(self) -> torch.autocast:
        """bf16 products, as the command computes on a card."""
        return torch.autocast(self.bench.device.type, torch.bfloat16, enabled=not self.bench.toy)

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW; with states of 8 bits where 7 B weights train, and plain descent where that cannot be had."""
        name = "adamw-8bit" if self.lean and not self.adapter else "adamw"
        weights = "bf16" if self.options.rounding else "fp32"
        chosen = OptimizerConfig(learning_rate=RATE, name=name, weights=weights)
        if self.options.rounding:  # which is what is measured
            return self._tried(chosen)
        made: torch.optim.Optimizer | None = self.bench.attempt(f"optimizer {chosen.name}", self._tried, chosen)
        return made or torch.optim.SGD(self.weights, lr=RATE)

    def _tried(self, chosen: OptimizerConfig) -> torch.optim.Optimizer:
        """An optimizer that has taken a step on this device."""
        weight = nn.Parameter(torch.randn(4096, 8, device=self.bench.device, dtype=self.weights[0].dtype))
        tried = make_optimizer([weight], chosen)  # before the gradient, whose dtype it says
        weight.grad = torch.randn_like(weight, dtype=gradient_dtype(weight))
        self._update(tried)
        self.bench.wait()
        return make_optimizer(self.weights, chosen)

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        with uncompiled_on_cpu(self.bench.device):
            optimizer.step()

    def system(self, budget: int, length: int) -> Step:
        """What takes the gradients of a batch, in forwards of ``budget`` tokens."""
        texts = max(1, budget // length)
        if self.options.system == "authors":
            return Authors(self.decoder, PROMPTS["released"], texts).backward
        if self.options.system == "two passes":
            return TwoPasses(self.decoder, PROMPTS["paper"], texts, by_length=True).backward
        self.decoder.choose_attention("packed")
        batching = self.decoder.batching("packed", budget)
        objective = PretextObjective(self.decoder, PAPER, PROMPTS["paper"], batching)
        return lambda items: objective.backward(items).loss

    def measure(self, setting: str, kind: str, budget: int) -> None:
        """Median of some steps, after one that compiles and fills caches."""
        options, bench = self.options, self.bench
        logits: Logits = "released" if options.system == "authors" else "paper"
        length = TOY_LENGTH if bench.toy else LENGTH
        items = examples(kind, options.tokens, length, self.shape.vocab_size, PROMPTS[logits])
        step = self.system(budget, length)
        bench.forget_peak()
        losses: list[float] = []
        first = bench.seconds(lambda: losses.append(self._step(step, items)))
        if bench.warm:
            return
        times = [first]
        for _ in range(options.steps):
            if len(times) == 1 or bench.left > 2 * times[-1]:
                times.append(bench.seconds(lambda: losses.append(self._step(step, items))))
        seconds = float(np.median(times[1:]))
        lengths = [len(item.text) + PROMPTS[logits].overhead() for item in items]
        flops = sum(each * training_flops(self.shape, each, logits, self.adapter) for each in lengths)
        bench.record(
            setting, tokens_per_s=sum(lengths) / seconds, **bench.utilisation(flops / seconds), peak_gb=bench.peak_gb(),
            step_s=seconds, first_step_s=first, texts=len(items), tokens=sum(lengths), loss=losses[0],
            optimizer=type(self.optimizer).__name__, implementation=self.decoder.config._attn_implementation,
        )  # fmt: skip

    def _step(self, step: Step, items: Sequence[Example]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with self.mixed():
            loss = step(items)
        self._update(self.optimizer)
        return loss


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Every kind of text and budget."""
    name = f"{options.shape}, {name_of(options)}"
    budgets = [int(budget) for budget in options.budgets.split(",")]
    if bench.warm:
        options.tokens = max(budgets)
    if bench.toy:
        options.tokens //= TOY_STEP
        budgets = [budget // TOY_FORWARD for budget in budgets]
    pretraining = Pretraining(bench, options)
    for kind, budget in product(options.lengths.split(","), budgets):
        setting = f"{name}, {kind} texts, {budget} tokens a forward"
        if bench.left < 5:
            bench.record(setting, skipped="no time left")
        else:
            bench.attempt(setting, pretraining.measure, setting, kind, budget)


def main() -> None:
    """Measure; a setting that cannot be had is a result."""
    options = parser().parse_args()
    bench = Bench(options)
    bench.attempt(f"{options.shape}, {name_of(options)}", run, bench, options)


if __name__ == "__main__":
    main()
