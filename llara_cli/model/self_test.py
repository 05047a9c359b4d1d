"""Tests of a loaded model on a few tokens: causal, joint passes, attention implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.model.architecture import FAILURES, compute_dtype, dtype_name, evaluating, reason, tolerance
from llara_cli.model.sequences import Tree, place_in_rows
from llara_cli.model.to_device import to_device
from llara_cli.model.varlen import VARLEN

if TYPE_CHECKING:
    from llara_cli.model.decoder import Decoder

TOKENS = 16
"""Tokens of a test row."""


def _tree(decoder: Decoder) -> Tree:
    """A tree of a few tokens with two branches."""
    ids = np.random.default_rng(0).integers(0, decoder.embedded_tokens, 19)
    return Tree(ids[:8], [ids[8:15], ids[15:]])


def jointly(decoder: Decoder, windows: list[int | None] | None = None) -> Tensor:
    """Hidden states (2, dim) of a tree's two branches, computed in one row; ``windows``: see ``Decoder.hidden``."""
    token_rows = place_in_rows([_tree(decoder)])
    with evaluating(decoder.model):
        return decoder.hidden(token_rows, windows)[to_device(token_rows.slots[:, 0], decoder.device)]


def separately(decoder: Decoder) -> Tensor:
    """The same hidden states, each branch computed with a trunk and a row of its own."""
    tree = _tree(decoder)
    with evaluating(decoder.model):
        return decoder.slots(place_in_rows([Tree(tree.trunk, [branch]) for branch in tree.branches]))[:, 0]


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether the two differ by rounding in ``dtype`` at most."""
    error = (found - wanted).float().norm() / wanted.float().norm()
    return bool(error < (1e-3 if dtype in (torch.float32, torch.float64) else 5e-2))


def runs_jointly(decoder: Decoder) -> bool:
    """``Decoder.runs_jointly`` with the current attention implementation."""
    if not decoder.takes_trees:
        return False
    try:
        found = jointly(decoder)
        return close(found, separately(decoder), found.dtype)
    except (RuntimeError, TypeError, ValueError):
        return False


def why_not_varlen(decoder: Decoder) -> str | None:
    """Why a model cannot use attention over segments; None if it computes the same there as with dense attention."""
    kind = decoder.config.model_type
    if decoder.drops_attention:
        return f"{kind} has dropout in attention"
    if not decoder.takes_trees:
        return f"{kind} takes no positions as given, or has layers of other kinds than full and sliding attention"
    windows: list[int | None] = []
    try:
        with decoder.attending():
            wanted = separately(decoder)
        with decoder.attending(VARLEN):
            found = jointly(decoder, windows)
    except FAILURES as error:
        return f"{kind} fails with it: {reason(error)}"
    if windows != decoder.windows.layers:
        return f"the layers of {kind} do not ask for the sliding windows of its configuration"
    alike = close(found, wanted, compute_dtype(next(decoder.body.parameters())))
    return None if alike else f"{kind} computes something else with it than with dense attention"


def check(decoder: Decoder, where: str) -> None:
    """``Decoder.check``."""
    kind = decoder.config.model_type
    positions = decoder.max_positions
    tokens = TOKENS if positions is None or positions < 2 else min(TOKENS, positions)
    earlier = slice(0, tokens // 2)
    ids = np.random.default_rng(1).integers(min(5, decoder.embedded_tokens - 1), decoder.embedded_tokens, (2, tokens))
    ids[1, earlier] = ids[0, earlier]
    try:
        with evaluating(decoder.model):
            hidden = decoder.hidden(place_in_rows([Tree(row, []) for row in ids]))
    except FAILURES as error:
        raise UserError(f"{where}: {kind} does not run on token ids alone: {reason(error)}") from error
    if not hidden.isfinite().all():
        raise LlaraError(
            f"{where}: {kind} gives NaN or infinite hidden states: its weights are damaged, or too large for "
            f"{dtype_name(hidden.dtype)}: try `dtype='fp32'` or bf16"
        )
    if hidden.shape != (2 * tokens, decoder.dim):
        raise UserError(f"{where}: {kind} returns hidden states of width {hidden.shape[-1]}, expected {decoder.dim}")
    one, other = hidden.float().view(2, tokens, decoder.dim)[:, earlier]
    # not the largest: rounding may send a single token to another expert
    if float(((one - other).norm(dim=-1) / one.norm(dim=-1)).median()) > tolerance(hidden):
        why = " (is_decoder: false)" if getattr(decoder.config, "is_decoder", None) is False else ""
        raise UserError(
            f"{where}: {kind}{why} is not a causal decoder: hidden states depend on later tokens;"
            " encode with `encoder='sentence-transformers'`"
        )
