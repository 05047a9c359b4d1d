"""Attention in blocks is PyTorch's own, and spares the keys that nobody in a block may see."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llara_cli.core.workspace import Workspace
from llara_cli.cpu import attention as module
from llara_cli.cpu.attention import BLOCK, LEAST_WIDTH, MOST_CAUSAL, Blocks, attention, blocks_of, causal_blocks
from llara_cli.cpu.matmul import CpuKernels, lean_training
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.sequences import Tree, place_in_rows, visible
from llara_cli.model.source import resolve

ATTENTION = functional.scaled_dot_product_attention


def mask(*rows: tuple[int, ...], window: int | None = None) -> Tensor:
    """(R, 1, L, L) of rows of trees with trunks of so many tokens and two branches of 9 and 8."""
    trees = [Tree(list(range(trunk)), [list(range(9)), list(range(8))]) for row in rows for trunk in row]
    numbers = iter(range(len(trees)))
    placed = place_in_rows(trees, [[next(numbers) for _ in row] for row in rows])
    return torch.from_numpy(visible(placed, window))[:, None]


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


def refused(wide: Tensor) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
    """Arguments that PyTorch takes and blocks do not."""
    width = wide.shape[-1]
    query, key, value = given = [tensor.detach() for tensor in tensors(1, width)]
    yield given, {"attn_mask": torch.zeros(wide.shape).masked_fill_(~wide, float("-inf"))}
    yield given, {"attn_mask": wide.expand(1, 4, width, width)}
    yield given, {"attn_mask": wide, "dropout_p": 0.5}
    yield given, {}
    yield [tensor.double() for tensor in given], {"attn_mask": wide}
    yield [query, key, value[..., :8]], {"attn_mask": wide}
    yield [query[:, :, -LEAST_WIDTH:], key, value], {"attn_mask": wide[:, :, -LEAST_WIDTH:]}
    yield [query[:, :, :300], key, value], {"is_causal": True}
    yield [query.transpose(2, 3).contiguous().transpose(2, 3), key, value], {"attn_mask": wide}
    yield [tensor.detach() for tensor in tensors(1, MOST_CAUSAL + 1)], {"is_causal": True}
    yield [tensor.detach() for tensor in tensors(1, LEAST_WIDTH - 1)], {"is_causal": True}


def test_what_blocks_do_not_suit_is_left_to_pytorch(taken: list[int]) -> None:
    wide = mask((400,))
    with torch.no_grad(), CpuKernels():
        for given, options in refused(wide):
            assert ATTENTION(*given, **options).shape == (*given[0].shape[:3], given[2].shape[-1])
        given = [tensor.detach() for tensor in tensors(1, wide.shape[-1])]
        with torch.enable_grad():
            ATTENTION(*(tensor.requires_grad_() for tensor in given), attn_mask=wide)  # may be recomputed outside
        with sdpa_kernel(SDPBackend.MATH):
            ATTENTION(*given, attn_mask=wide)
        assert not taken
        ATTENTION(*given, attn_mask=wide)
    assert len(taken) == 1


def test_many_threads_share_no_row(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    shared, wide = tensors(1, 417, (4, 2)), mask((400,))
    with torch.no_grad(), CpuKernels():
        ATTENTION(*shared, is_causal=True, enable_gqa=True)
        ATTENTION(*tensors(1, 417), attn_mask=wide)
        assert len(taken) == 2
        taken.clear()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
        ATTENTION(*tensors(1, 417), attn_mask=wide)
        assert not taken


def test_autocast_casts_as_it_did(taken: list[int]) -> None:
    query, key, value = tensors(1, 417)
    with torch.autocast("cpu", torch.bfloat16), lean_training():
        assert ATTENTION(query, key, value.bfloat16(), attn_mask=mask((400,))).dtype == torch.bfloat16
    assert not taken


def test_queries_that_see_nothing_get_zeros() -> None:
    seen = mask((400,))
    seen[:, :, :BLOCK] = False
    given = [tensor.detach() for tensor in tensors(1, seen.shape[-1])]
    mine, theirs = attention(*given, blocks_of(seen[:, 0]), None), ATTENTION(*given, attn_mask=seen)
    assert not mine[:, :, :BLOCK].any()
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_mask_is_known_by_more_than_its_place() -> None:
    seen = mask((400,))
    query, key, value = tensors(1, seen.shape[-1])
    blocks = Blocks()
    forward = blocks.suiting(query, key, value, seen, is_causal=False)
    backward = blocks.suiting(query, key, value, seen.transpose(-1, -2), is_causal=False)
    assert forward is not None
    assert backward is not None
    assert [block.keys for block in forward] != [block.keys for block in backward]
    assert blocks.suiting(query, key, value, seen.transpose(-1, -2), is_causal=False) is backward


def test_a_mask_is_kept_as_long_as_its_blocks() -> None:
    seen, blocks = mask((400,)), Blocks()
    blocks.suiting(*tensors(1, seen.shape[-1]), seen, is_causal=False)
    kept = weakref.ref(seen)
    del seen
    gc.collect()
    assert kept() is not None  # so that no other mask comes to lie where it lies


def test_masks_made_for_encoding_serve_training(taken: list[int]) -> None:
    module.triangle.cache_clear()
    given = tensors(1, 300)
    with torch.inference_mode(), CpuKernels():
        ATTENTION(*given, is_causal=True)
    with lean_training():
        ATTENTION(*given, is_causal=True).sum().backward()
    assert len(taken) == 2
    assert all(tensor.grad is not None for tensor in given)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "neox"])
def test_a_model_trains_in_blocks_as_without(tmp_path: Path, taken: list[int], architecture: str) -> None:
    source = resolve(str(make_model(tmp_path / "model", architecture)), Workspace(tmp_path))
    model = load_causal_lm(source, torch.float32).train()
    random = np.random.default_rng(0)
    ids = [random.integers(0, 300, length).tolist() for length in (100, 60, 9, 8)]
    trees = [Tree(ids[number], ids[2:]) for number in (0, 1)] * 2
    for token_rows in (place_in_rows(trees, [[0, 1, 2], [3]]), place_in_rows([Tree(ids[0] * 3, [ids[2]])] * 2)):
        found = []
        for lean in (False, True):
            decoder = Decoder(model)
            if lean:
                decoder.train_lean()
            slots = decoder.slots(token_rows)
            wanted = torch.randn(slots.shape, generator=torch.Generator().manual_seed(1))
            (slots * wanted).sum().backward()
            assert bool(taken) is lean
            found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
            model.zero_grad(set_to_none=True)
        taken.clear()
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
