"""Chooses the tokens per forward, and the layers recomputed in backward, to fit the free memory of a GPU.

Training's memory is linear in tokens and in layers, so it is measured on models of one and two layers, in forwards of
a few tokens, before the weights of the whole model are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llara_cli.core.reporter import Reporter
from llara_cli.data.text_files import one_line
from llara_cli.model.decoder import Decoder
from llara_cli.model.sequences import Tree, place_in_rows

MOST_TOKENS, LEAST_TOKENS, STEP = 16384, 4096, 1024
"""Tokens per forward on a GPU: rather than below the least, layers are recomputed."""
TRIAL_ROWS, TRIAL_TOKENS = 2, 64
"""Rows of the smaller of two trial forwards, and tokens per row."""
USABLE = 0.9
"""Fraction of the free memory that is used: the allocator loses some to fragmentation."""
RESERVED = 4 * 2**30
"""Bytes for logits and their softmax."""
Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Needs:
    """Memory of training in bytes: weights, gradients, optimizer state, and what autograd saves for backward.

    Attributes:
        fixed: independent of tokens and layers.
        layer: per layer, independent of tokens.
        token: per token, outside the layers.
        layer_token: per token and layer.
        recomputed_token: per token and recomputed layer; None: the model cannot recompute layers.
    """

    fixed: float
    layer: float
    token: float
    layer_token: float
    recomputed_token: float | None

    def total(self, tokens: int, layers: int, every: int) -> float:
        """Peak bytes of backward if every ``every``-th layer is recomputed (0: none)."""
        again = recomputed(layers, every)
        a_token = self.token + (layers - again) * self.layer_token + again * (self.recomputed_token or 0.0)
        working = self.layer_token  # gradients of a layer's tensors, or its recomputed tensors
        return self.fixed + layers * self.layer + tokens * (a_token + working)


@dataclass(frozen=True)
class Forwards:
    """Tokens per forward; every ``every``-th layer is recomputed in backward (0: none)."""

    tokens: int
    every: int


def recomputed(layers: int, every: int) -> int:
    """Number of recomputed layers."""
    return -(-layers // every) if every else 0


def choose_forwards(
    free: float, needs: Needs, layers: int, *, longest: int, tokens: int | None = None, recompute: bool | None = None
) -> Forwards:
    """The most tokens that fit ``free`` bytes, with as few recomputed layers as possible.

    Args:
        longest: tokens of the longest sequence, which must fit a forward.
        tokens: tokens per forward, if the user set them; None: chosen here.
        recompute: whether all layers are recomputed; None: as many as necessary.

    If nothing fits, returns the choice that takes the least memory.
    """
    if needs.recomputed_token is None and recompute is None:
        recompute = False
    ways = {None: recompute_intervals(layers), True: [1], False: [0]}[recompute]
    sizes = [tokens] if tokens else list(range(MOST_TOKENS, LEAST_TOKENS - 1, -STEP))
    smaller = [] if tokens else list(range(LEAST_TOKENS - STEP, 0, -STEP))
    tried = [(size, every) for every in ways for size in sizes] + [(size, ways[-1]) for size in smaller]
    for size, every in tried:
        if needs.total(max(size, longest), layers, every) <= free:
            return Forwards(size, every)
    return Forwards(*tried[-1])


def fit_forwards(
    free: int, count: Callable[[], Needs], layers: int, reporter: Reporter, *, longest: int, tokens: int | None,
    recompute: bool | None,
) -> Forwards:  # fmt: skip
    """``choose_forwards`` for ``free`` bytes and the needs that ``count`` returns, with a note or a warning.

    If ``count`` fails: ``LEAST_TOKENS`` tokens, and layers are recomputed only if ``recompute`` says so.
    """
    try:
        with reporter.status("measuring how much memory a layer takes"):
            needs = count()
    except Exception as error:  # training may work all the same
        chosen = Forwards(tokens or LEAST_TOKENS, int(recompute or False))
        reporter.warn(
            f"the memory of a layer cannot be measured ({one_line(error)}): using {chosen.tokens} tokens per forward;"
            " `execution.micro_batch_tokens` and `execution.gradient_checkpointing` change that"
        )
        return chosen
    usable = USABLE * free
    chosen = choose_forwards(usable, needs, layers, longest=longest, tokens=tokens, recompute=recompute)
    again = f", {recomputed(layers, chosen.every)} of {layers} layers recomputed" if chosen.every else ""
    reporter.note(f"{chosen.tokens} tokens per forward{again}")
    if (needed := needs.total(max(chosen.tokens, longest), layers, chosen.every)) > usable:
        reporter.warn(
            f"about {needed / 1e9:.1f} GB of GPU memory are needed, {usable / 1e9:.1f} GB are free:"
            " `backend='lora'` or qlora, `optimizer.weights='bf16'` or shorter texts take less"
        )
    return chosen


def recompute_intervals(layers: int) -> list[int]:
    """The distinct values of ``every``, from no layer to all of them."""
    by_count = {recomputed(layers, every): every for every in range(1, layers + 1)}
    return [0, *(by_count[count] for count in sorted(by_count))]


def free_memory(device: torch.device) -> int | None:
    """Free memory of a GPU in bytes; None on a CPU, where small forwards fit the caches better."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def count_needs(
    shallow: Callable[[int], Decoder], static_bytes: Callable[[Decoder], float], autocast: Context
) -> Needs:
    """Measure what training takes.

    Args:
        shallow: returns the model with that many layers; its attention may be another than in training.
        static_bytes: of a model's weights, gradients and optimizer state.
    """
    one, two = (_count(shallow(layers), static_bytes, autocast) for layers in (1, 2))
    layer, layer_token = two[0] - one[0], two[1] - one[1]
    again = None if one[2] is None or two[2] is None else two[2] - one[2]
    return Needs(RESERVED + one[0] - layer, layer, one[1] - layer_token, layer_token, again)


def _count(
    decoder: Decoder, static_bytes: Callable[[Decoder], float], autocast: Context
) -> tuple[float, float, float | None]:
    """Fixed bytes, bytes per token, and bytes per token if all layers are recomputed."""
    fixed, token = _by_tokens(decoder, autocast)
    if not decoder.model.supports_gradient_checkpointing:
        return static_bytes(decoder) + fixed, token, None
    decoder.recompute_in_backward()
    return static_bytes(decoder) + fixed, token, _by_tokens(decoder, autocast)[1]


def _by_tokens(decoder: Decoder, autocast: Context) -> tuple[float, float]:
    """Fixed bytes, and bytes per token."""
    decoder.model.train()
    few, many = (kept_bytes(decoder, rows, autocast) for rows in (TRIAL_ROWS, 2 * TRIAL_ROWS))
    each = (many - few) / (TRIAL_ROWS * TRIAL_TOKENS)
    return few - each * TRIAL_ROWS * TRIAL_TOKENS, each


def kept_bytes(decoder: Decoder, rows: int, autocast: Context) -> int:
    """Bytes that autograd saves in a forward of ``rows`` rows, without weights and buffers."""
    own = {_piece(weight) for weight in (*decoder.model.parameters(), *decoder.model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (piece := _piece(tensor)) not in own:
            sizes[piece] = tensor.untyped_storage().nbytes()
        return tensor

    row = Tree(np.zeros(TRIAL_TOKENS, np.int64), [])
    with autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = decoder.hidden(place_in_rows([row] * rows))  # keeps its graph and the saved tensors alive
    del hidden
    return sum(sizes.values())


def _piece(tensor: Tensor) -> int:
    """Address of a tensor's storage, which several tensors may share."""
    return tensor.untyped_storage().data_ptr()
