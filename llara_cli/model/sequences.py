"""Trees of tokens in rows; masks and positions as pure functions of lengths.

One text and its prompts are a *tree*: a trunk (start token, prefix, text) and one or two branches (SELF, NEXT). The
trunk is computed once; every branch sees the trunk and itself, never its sibling, and its positions begin where the
trunk ends. So one forward over a tree equals one forward per branch (arXiv 2312.15503, section 3.2; the authors' code
builds the same mask for Llama's ids and left padding only). Trees of one batch may share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
TokenIds = Sequence[int] | NDArray[np.integer[Any]]
PADDING = -1
LEAST_MULTIPLE = 128
"""The smallest multiple that short rows are rounded up to, where rows are rounded up to a larger one."""


@dataclass(frozen=True)
class Tree:
    """One trunk with its branches, in token ids; the last ``slots`` ids of a branch carry its answer."""

    trunk: TokenIds
    branches: Sequence[TokenIds]
    slots: int = 1

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch) for branch in self.branches)

    @property
    def span(self) -> int:
        """Number of positions of the tree; branches share theirs."""
        return len(self.trunk) + max((len(branch) for branch in self.branches), default=0)


@dataclass(frozen=True)
class TokenRows:
    """Trees laid out in ``R`` rows of ``L`` tokens, padded on the right.

    Attributes:
        ids: (R, L) token ids; padding is 0.
        tree: (R, L) index of the tree within the batch, -1 for padding.
        branch: (R, L) 0 in a trunk, 1.. in the branches.
        positions: (R, L) position ids.
        slots: (branches of all trees, slots) flat indices into ``R * L``; trees in batch order, branches in theirs.
        trunks: (trees,) flat index of each trunk's first token.
        plain: each row is one tree with at most one branch, so the model's own causal mask is right as it is.
    """

    ids: Ids
    tree: Ids
    branch: Ids
    positions: Ids
    slots: Ids
    trunks: Ids
    plain: bool

    @property
    def real(self) -> NDArray[np.bool_]:
        """(R, L) True for tokens that are not padding."""
        result: NDArray[np.bool_] = self.tree != PADDING
        return result


def place_in_rows(trees: Sequence[Tree], rows: Sequence[Sequence[int]] | None = None, multiple: int = 1) -> TokenRows:
    """Place trees into rows (``rows``: tree numbers of each; left out, one tree a row in the order given).

    The rows' width is that of the longest, rounded up: see ``row_width``.
    """
    rows = [[number] for number in range(len(trees))] if rows is None else rows
    width = row_width(max(sum(len(trees[number]) for number in row) for row in rows), multiple)
    shape = (len(rows), width)
    ids, branch, positions = (np.zeros(shape, np.int64) for _ in range(3))
    tree = np.full(shape, PADDING, np.int64)
    starts = np.zeros(len(trees), np.int64)
    for r, row in enumerate(rows):
        at = 0
        for number in row:
            here = slice(at, at + len(trees[number]))
            ids[r, here] = _flat_ids(trees[number])
            branch[r, here], positions[r, here] = branch_and_position(trees[number])
            tree[r, here] = number
            starts[number] = r * width + at
            at = here.stop
    plain = all(len(row) == 1 and len(trees[row[0]].branches) <= 1 for row in rows)
    return TokenRows(ids, tree, branch, positions, _slots(trees, starts), starts, plain)


def row_width(tokens: int, multiple: int) -> int:
    """``tokens`` rounded up to a multiple of ``multiple``, or of a half, a quarter ... of it for short rows."""
    while multiple % 2 == 0 and multiple >= 2 * max(tokens, LEAST_MULTIPLE):
        multiple //= 2
    return tokens + -tokens % multiple


def place_some(trees: Sequence[Tree], rows: Sequence[Sequence[int]], multiple: int = 1) -> tuple[list[int], TokenRows]:
    """Place only the trees in ``rows``; return their numbers, in the order of the token rows, and the token rows."""
    numbers = [number for row in rows for number in row]
    place = {number: at for at, number in enumerate(numbers)}
    return numbers, place_in_rows([trees[n] for n in numbers], [[place[n] for n in row] for row in rows], multiple)


def _flat_ids(tree: Tree) -> Ids:
    parts = [np.asarray(part, np.int64) for part in (tree.trunk, *tree.branches)]
    return np.concatenate(parts)


def branch_and_position(tree: Tree) -> tuple[Ids, Ids]:
    """Branch number and position of each token of a tree: every branch continues where the trunk ends."""
    trunk = len(tree.trunk)
    lengths = [len(branch) for branch in tree.branches]
    numbers = np.repeat(np.arange(len(lengths) + 1), [trunk, *lengths])
    positions = np.concatenate([np.arange(trunk), *(trunk + np.arange(length) for length in lengths)])
    return numbers, positions


def _slots(trees: Sequence[Tree], starts: Ids) -> Ids:
    found = []
    for start, tree in zip(starts, trees, strict=True):
        end = start + len(tree.trunk)
        for branch in tree.branches:
            end += len(branch)
            found.append(np.arange(end - tree.slots, end))
    return np.stack(found) if found else np.zeros((0, 1), np.int64)


class Token(NamedTuple):
    """Tokens by where they are: arrays or tensors that broadcast against those of other tokens.

    Attributes:
        tree: number of the tree, or ``PADDING``.
        branch: number of the branch, 0 in the trunk.
        position: in the text.
        index: in the row.
    """

    tree: Any
    branch: Any
    position: Any
    index: Any


def may_see(query: Token, key: Token, window: int | None) -> Any:
    """Whether query tokens may see key tokens: the one rule that every kind of mask is made from.

    Same tree, not later, and the key in the trunk or in the query's own branch; with a sliding ``window`` also fewer
    than ``window`` positions back. Padding sees itself only, so that no row of a mask is empty.
    """
    seen = (query.tree == key.tree) & (query.tree != PADDING) & (query.index >= key.index)
    seen = seen & ((key.branch == 0) | (key.branch == query.branch))
    if window is not None:
        seen = seen & (query.position - key.position < window)
    return seen | (query.index == key.index)


def visible(token_rows: TokenRows, window: int | None = None) -> NDArray[np.bool_]:
    """(R, L, L) True where query token i may see key token j, by ``may_see``."""
    index = np.arange(token_rows.tree.shape[1])
    tree, branch, positions = token_rows.tree, token_rows.branch, token_rows.positions
    query = Token(tree[:, :, None], branch[:, :, None], positions[:, :, None], index[:, None])
    key = Token(tree[:, None, :], branch[:, None, :], positions[:, None, :], index[None, :])
    result: NDArray[np.bool_] = may_see(query, key, window)
    return result
