"""The systems that ``pretrain.py`` compares, ours in one process and the rivals in another.

Each side has the allocator that it has where people run it: ours the one that the command sets up, theirs the default.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from rivals import Authors, TwoPasses
from texts import Kind, Texts
from transformers import AutoModelForCausalLM, LlamaConfig

from llara_cli.cpu import keep_freed_memory
from llara_cli.model.batching import Batching
from llara_cli.model.decoder import ROW_TOKENS, Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.training.pretext import Example, PretextObjective

SHAPES: dict[str, dict[str, Any]] = {
    "30M": {
        "vocab_size": 32016, "hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 8,
        "num_attention_heads": 7, "num_key_value_heads": 7,
    },
    "135M": {
        "vocab_size": 49168, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
}  # fmt: skip
AT_ONCE = 8
"""Texts of the authors' forward that is measured whatever suits them best, and of the step whose memory is taken."""
ALL_AT_ONCE = f"authors, {AT_ONCE} texts"
"""That system's name."""
System = Callable[[Sequence[Example]], float]
Systems = dict[str, tuple[Recipe, dict[str, System]]]
"""By name: the recipe, and the system by the micro-batch settings that it may choose from."""


def model_of(shape: str) -> Decoder:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape], tie_word_embeddings=True))
    return Decoder(model.train())


def ours(decoder: Decoder, texts: Texts, recipe: Recipe, budget: int) -> System:
    """Our objective, as the command runs it."""
    decoder = Decoder(decoder.model)
    decoder.train_lean()
    objective = PretextObjective(decoder, recipe, texts.prompts(recipe), Batching("packed", budget, ROW_TOKENS))
    return lambda examples: objective.backward(examples).loss


def mine(recipe: Recipe) -> str:
    """Our system's name."""
    return f"llara {recipe.name}"


def systems(decoder: Decoder, texts: Texts) -> Systems:
    """Every system."""
    released, paper = texts.prompts(RELEASED), texts.prompts(PAPER)
    budgets = (1024, 2048)
    sizes = (1, 2, 4, 8)
    found: Systems = {}
    for recipe in (PAPER, RELEASED):
        ways = {f"{budget} tokens": ours(decoder, texts, recipe, budget) for budget in budgets}
        found[mine(recipe)] = (recipe, ways)
    found["authors"] = (RELEASED, {f"{size} texts": Authors(decoder, released, size).backward for size in sizes})
    found[ALL_AT_ONCE] = (RELEASED, {f"{AT_ONCE} texts": Authors(decoder, released, AT_ONCE).backward})
    for by_length in (False, True):
        name = "two passes, by length" if by_length else "two passes"
        ways = {f"{size} texts": TwoPasses(decoder, paper, size, by_length).backward for size in sizes}
        found[name] = (PAPER, ways)
    return found


def step(
    decoder: Decoder, system: System, examples: Sequence[Example], optimizer: torch.optim.Optimizer
) -> tuple[float, float]:
    """Seconds and loss of one optimizer step; the weights stay as they are, as the rate is nothing."""
    optimizer.zero_grad(set_to_none=True)
    started = time.perf_counter()
    loss = system(examples)
    torch.nn.utils.clip_grad_norm_(decoder.model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - started, loss


class Side:
    """A process with a model of its own, which takes steps of some of ``count`` examples as it is asked to.

    ``keeps``: its allocator is set as the command sets it (``keep_freed_memory``).
    """

    def __init__(self, shape: str, kind: Kind, texts: Texts, count: int, threads: int, *, keeps: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._asks, answers = context.Pipe()
        given = (shape, kind, texts, count, threads, keeps, answers)
        self._process = context.Process(target=take_steps, args=given, daemon=True)
        self._process.start()
        answers.close()

    def step(self, name: str, way: str, part: slice) -> tuple[float, float]:
        """Seconds and loss of a system's step, in one of its settings, on some of its examples."""
        self._asks.send((name, way, part))
        found: tuple[float, float] = self._asks.recv()
        return found

    def close(self) -> None:
        """Let the process end, and wait for it."""
        self._asks.send(None)
        self._process.join()


def take_steps(shape: str, kind: Kind, texts: Texts, count: int, threads: int, keeps: bool, asked: Connection) -> None:
    """What a ``Side``'s process does."""
    torch.set_num_threads(threads)
    decoder = model_of(shape)
    if keeps:
        keep_freed_memory()
    optimizer = torch.optim.AdamW(decoder.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    every = systems(decoder, texts)
    examples = {recipe.name: texts.examples(kind, recipe, count) for recipe in (PAPER, RELEASED)}
    while (wanted := asked.recv()) is not None:
        name, way, part = wanted
        recipe, ways = every[name]
        asked.send(step(decoder, ways[way], examples[recipe.name][part], optimizer))
