"""Attention in blocks is PyTorch's own, and spares the keys that nobody in a block may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model
from torch import Tensor
from torch.nn import functional

from llara_cli.model import attention as module
from llara_cli.model.attention import BLOCK, LEAST_WIDTH, MOST_CAUSAL, Blocks, attention, blocks_of, causal_blocks
from llara_cli.model.backbone import Backbone
from llara_cli.model.layout import Tree, lay_out, visible
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.products import Products, lean_training
from llara_cli.model.source import resolve
from llara_cli.workspace import Workspace

ATTENTION = functional.scaled_dot_product_attention


def mask(*rows: tuple[int, ...], window: int | None = None) -> Tensor:
    """(R, 1, L, L) of rows of trees with trunks of so many tokens and two branches of 9 and 8."""
    trees = [Tree(list(range(trunk)), [list(range(9)), list(range(8))]) for row in rows for trunk in row]
    numbers = iter(range(len(trees)))
    return torch.from_numpy(visible(lay_out(trees, [[next(numbers) for _ in row] for row in rows]), window))[:, None]


def tensors(rows: int, width: int, heads: tuple[int, int] = (4, 4)) -> list[Tensor]:
    """Queries, keys and values as a decoder has them: (R, heads, L, 16), of (R, L, heads, 16)."""
    torch.manual_seed(0)
    each = (torch.randn(rows, width, count, 16).transpose(1, 2) for count in (heads[0], heads[1], heads[1]))
    return [tensor.detach().requires_grad_() for tensor in each]


def results(run: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """What ``run`` makes of the tensors, and the gradients of all."""
    made = run(*given)
    wanted = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    return [made.detach(), *torch.autograd.grad((made * wanted).sum(), given)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of a query and a key, of every call that went in blocks."""
    found: list[int] = []
    plain = module._Attention.apply

    def count(*given: Any) -> Any:
        found.append(sum(block.added.numel() for block in given[3]))
        return plain(*given)

    monkeypatch.setattr(module._Attention, "apply", count)
    return found


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["heads", "shared keys"])
@pytest.mark.parametrize(
    "seen", [mask((300,), (150, 60, 40)), mask((BLOCK - 17, 400), (20,)), mask((500,), window=40)],
    ids=["trees", "padding", "window"],
)  # fmt: skip
def test_blocks_of_a_mask_give_what_pytorch_gives(seen: Tensor, heads: tuple[int, int]) -> None:
    given = tensors(len(seen), seen.shape[-1], heads)
    blocks = blocks_of(seen[:, 0])
    mine = results(lambda q, k, v: attention(q, k, v, blocks, 0.3), given)
    theirs = results(lambda q, k, v: ATTENTION(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True), given)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["heads", "shared keys"])
@pytest.mark.parametrize("width", [LEAST_WIDTH, 700])
def test_causal_blocks_give_what_pytorch_gives(width: int, heads: tuple[int, int]) -> None:
    given = tensors(2, width, heads)
    mine = results(lambda q, k, v: attention(q, k, v, causal_blocks(width), None), given)
    theirs = results(lambda q, k, v: ATTENTION(q, k, v, is_causal=True, enable_gqa=True), given)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_keys_that_a_block_does_not_see_are_spared(taken: list[int]) -> None:
    seen = mask((BLOCK - 17,) * 4)
    query, key, value = tensors(1, seen.shape[-1])
    with lean_training():
        ATTENTION(query, key, value, attn_mask=seen)
        ATTENTION(query, key, value, is_causal=True)
    width = seen.shape[-1]
    assert width == 4 * BLOCK
    assert taken == [width * BLOCK, sum(range(BLOCK, width + 1, BLOCK)) * BLOCK]


def test_what_blocks_do_not_suit_is_left_to_pytorch(taken: list[int]) -> None:
    narrow, wide = mask((LEAST_WIDTH - 18,)), mask((400,))
    given = [tensor.detach() for tensor in tensors(1, wide.shape[-1])]
    short = [tensor[:, :, : narrow.shape[-1]] for tensor in given]
    added = torch.zeros(wide.shape).masked_fill_(~wide, float("-inf"))
    long = [tensor.detach() for tensor in tensors(1, MOST_CAUSAL + 1)]
    with torch.no_grad(), Products():
        torch.testing.assert_close(ATTENTION(*given, added), ATTENTION(*given, wide))
        assert len(taken) == 1  # the mask of yes and no
        for arguments, options in (
            (short, {"attn_mask": narrow}),
            ([tensor.double() for tensor in given], {"attn_mask": wide}),
            (given, {"attn_mask": wide, "dropout_p": 0.5}),
            ([given[0][:, :, -LEAST_WIDTH:], *given[1:]], {"attn_mask": wide[:, :, -LEAST_WIDTH:]}),
            (given, {}),
            (long, {"is_causal": True}),
        ):
            assert ATTENTION(*arguments, **options).shape == arguments[0].shape
        with torch.enable_grad():
            ATTENTION(*(tensor.requires_grad_() for tensor in given), attn_mask=wide)  # may be recomputed outside
    assert len(taken) == 1


def test_another_mask_at_the_same_place_is_another() -> None:
    both = torch.cat([mask((400,)), mask((300, 83))])
    query, key, _ = tensors(1, both.shape[-1])
    blocks = Blocks()
    one, two = (blocks.suiting(query, key, both[row : row + 1], 0.0, False) for row in (0, 1))
    assert one is not None
    assert two is not None
    assert blocks.suiting(query, key, both[:1], 0.0, False) is one
    assert [block.keys for block in one] != [block.keys for block in two]


@pytest.mark.parametrize("architecture", ["llama", "qwen", "neox"])
def test_a_model_trains_in_blocks_as_without(tmp_path: Path, taken: list[int], architecture: str) -> None:
    source = resolve(str(make_model(tmp_path / "model", architecture)), Workspace(tmp_path))
    model = load_causal_lm(source, torch.float32).train()
    random = np.random.default_rng(0)
    ids = [random.integers(0, 300, length).tolist() for length in (100, 60, 9, 8)]
    trees = [Tree(ids[number], ids[2:]) for number in (0, 1)] * 2
    for layout in (lay_out(trees, [[0, 1, 2], [3]]), lay_out([Tree(ids[0] * 3, [ids[2]])] * 2)):
        found = []
        for lean in (False, True):
            backbone = Backbone(model)
            if lean:
                backbone.train_lean()
            backbone.slots(layout).square().sum().backward()
            assert bool(taken) is lean
            found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
            model.zero_grad(set_to_none=True)
        taken.clear()
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
