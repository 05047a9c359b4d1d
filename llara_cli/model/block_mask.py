"""The mask of token rows for FlexAttention: in blocks, so that those in which nothing is seen cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from llara_cli.model.sequences import PADDING, Ids, Token, TokenRows, may_see
from llara_cli.model.to_device import to_device

BLOCK_TOKENS = 128
"""Tokens of a block, of queries and of keys."""
WIDTHS = 8
"""Most widths of long rows: FlexAttention and layers are compiled for each."""
Blocks = NDArray[np.bool_]


def row_multiple(budget: int) -> int:
    """The multiple that widths are rounded up to: a power of two blocks, so that rows of ``budget`` tokens have few."""
    blocks = -(-budget // (WIDTHS * BLOCK_TOKENS))
    return BLOCK_TOKENS << (blocks - 1).bit_length()


def block_mask(token_rows: TokenRows, window: int | None, device: torch.device) -> BlockMask:
    """The block mask of token rows, computed from lengths instead of pairs of tokens."""
    partial, full = block_table(token_rows, window)
    width = token_rows.ids.shape[1]
    return BlockMask.from_kv_blocks(
        *_listed(partial, device),
        *_listed(full, device),
        BLOCK_TOKENS,
        _sees(token_rows, window, device),
        (width, width),
    )


def block_table(token_rows: TokenRows, window: int | None = None) -> tuple[Blocks, Blocks]:
    """Blocks of queries and of keys in which some pairs may be seen, and in which all are: each (R, blocks, blocks).

    Nothing is seen in any other block. The first kind may hold a few in which nothing is seen either: those between
    the trunk and a branch.
    """
    tree = _blocks(token_rows.tree, PADDING)
    branch, positions = _blocks(token_rows.branch), _blocks(token_rows.positions)
    first = _blocks(_first_keys(token_rows, window), np.iinfo(np.int64).max).min(axis=-1) // BLOCK_TOKENS
    query, key = np.arange(tree.shape[1])[:, None], np.arange(tree.shape[1])[None, :]
    seen = (key <= query) & (key >= np.minimum(first, np.arange(tree.shape[1]))[..., None])
    whole = (tree == tree[..., :1]).all(axis=-1) & (tree[..., 0] != PADDING)
    trunk = whole & (branch == 0).all(axis=-1)
    full = (key < query) & whole[:, :, None] & trunk[:, None, :] & (tree[:, :, None, 0] == tree[:, None, :, 0])
    if window is not None:
        full &= positions.max(axis=-1)[:, :, None] - positions.min(axis=-1)[:, None, :] < window
    return seen & ~full, full


def _first_keys(token_rows: TokenRows, window: int | None) -> Ids:
    """(R, L) index in its row of the first key that a query may see, or an index before it."""
    index = np.broadcast_to(np.arange(token_rows.tree.shape[1]), token_rows.tree.shape)
    begins = np.diff(token_rows.tree, axis=1, prepend=PADDING - 1) != 0
    first = np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    if window is not None:  # a token lies at least as far from its tree's first as its position says
        first = first + np.maximum(0, token_rows.positions - window + 1)
    return np.where(token_rows.real, first, index)


def _blocks(values: Ids, fill: int = 0) -> Ids:
    """(R, L) -> (R, blocks, tokens of a block), the last block padded."""
    rows, width = values.shape
    filled = np.pad(values, ((0, 0), (0, -width % BLOCK_TOKENS)), constant_values=fill)
    return filled.reshape(rows, -1, BLOCK_TOKENS)


def _listed(table: Blocks, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each block of queries: how many blocks of keys are marked, and the block numbers, marked ones first."""
    numbers = np.argsort(~table, axis=-1, kind="stable")
    count, order = (part.astype(np.int32)[:, None] for part in (table.sum(axis=-1), numbers))
    return to_device(count, device), to_device(order, device)


def _sees(
    token_rows: TokenRows, window: int | None, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """``may_see`` for one pair of a query and a key."""
    parts = (token_rows.tree, token_rows.branch, token_rows.positions)
    tree, branch, positions = (to_device(part, device) for part in parts)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = may_see(
            Token(tree[row, query], branch[row, query], positions[row, query], query),
            Token(tree[row, key], branch[row, key], positions[row, key], key),
            window,
        )
        return seen

    return sees
