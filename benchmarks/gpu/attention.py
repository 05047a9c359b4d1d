"""Attention alone: is that of trees without a mask right, and how fast is it beside other ways to compute it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from gpu.bench import Bench, options_of
from llara_cli.model.block_mask import block_mask
from llara_cli.model.sequences import TokenRows, Tree, place_in_rows, visible
from llara_cli.model.varlen import attend, plan_of

Heads = tuple[int, int, int]
HEADS: tuple[Heads, ...] = ((9, 3, 64), (32, 4, 64), (32, 32, 128))
"""Heads of queries, heads of keys, and their width, of the three shapes."""
PROMPT = 5
CLOSE = 2e-2
"""Relative error that bf16 may have against fp64."""
BACKWARD = 2.5
"""Operations of attention's backward, over those of its forward."""
Way = Callable[[], Tensor]


def layout_of(lengths: list[int], multiple: int = 128) -> TokenRows:
    """Trees of texts of so many tokens with two prompts each, in one row of a multiple of so many tokens."""
    trees = [Tree(np.zeros(length, np.int64), [np.zeros(PROMPT, np.int64)] * 2) for length in lengths]
    return place_in_rows(trees, [list(range(len(trees)))], multiple)


def inputs(bench: Bench, tokens: int, heads: Heads) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output, (tokens, heads, width) each, in bf16."""
    queries, keys, width = heads
    torch.manual_seed(0)
    shapes = [(tokens, count, width) for count in (queries, keys, keys, queries)]
    return [torch.randn(shape, device=bench.device).bfloat16() for shape in shapes]


def four(values: Tensor, repeat: int = 1) -> Tensor:
    """(tokens, heads, width) -> (1, heads times ``repeat``, tokens, width)."""
    return values.transpose(0, 1)[None].repeat_interleave(repeat, 1)


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def check(bench: Bench, heads: Heads, window: int | None) -> None:
    """Output and gradients of trees without a mask, against SDPA under the dense mask in fp64."""
    token_rows = layout_of([1, 17, 30] if bench.toy else [1, 17, 300, 200, 64, 411])
    query, key, value, upstream = inputs(bench, token_rows.ids.shape[1], heads)
    real = torch.from_numpy(token_rows.real[0]).to(bench.device)
    upstream = upstream * real[:, None, None]
    leaves = [each.clone().requires_grad_() for each in (query, key, value)]
    found = attend(leaves[0], leaves[1], leaves[2], plan_of(token_rows, bench.device), window=window)
    precise = [each.double().requires_grad_() for each in (query, key, value)]
    mask = torch.from_numpy(visible(token_rows, window)).to(bench.device)[:, None]
    group = heads[0] // heads[1]
    wanted = scaled_dot_product_attention(four(precise[0]), four(precise[1], group), four(precise[2], group), mask)
    wanted = wanted[0].transpose(0, 1)
    pairs = [(found * real[:, None, None], wanted * real[:, None, None])]
    gradients = torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(wanted, precise, upstream.double())
    pairs += list(zip(*gradients, strict=True))
    errors = [error(*pair) for pair in pairs]
    name = f"varlen against dense fp64, {told(heads)}" + (f", window {window}" if window else "")
    figures = dict(zip(("output", "queries", "keys", "values"), errors, strict=True))
    verdict = {} if max(errors) < CLOSE else {"failed": f"an error above {CLOSE}"}
    bench.record(name, **verdict, errors=figures)


def told(heads: Heads) -> str:
    """Heads in words."""
    return f"{heads[0]}/{heads[1]} heads of {heads[2]}"


def lengths_of(bench: Bench, kind: str) -> tuple[list[int], int]:
    """Tokens of the texts in a forward, and of a whole one with both prompts."""
    total, most = (256, 64) if bench.toy else (16384, 1024)
    if kind == "full":
        return [most - 2 * PROMPT] * (total // most), most
    drawn = np.clip(np.random.default_rng(1).lognormal(5.0, 0.9, total), 16, most - 2 * PROMPT).astype(int)
    return drawn[: int(np.searchsorted(np.cumsum(drawn + 2 * PROMPT), total))].tolist(), most


def varlen_way(bench: Bench, token_rows: TokenRows, parts: list[Tensor]) -> Way:
    """Trees without a mask."""
    plan = plan_of(token_rows, bench.device)
    return lambda: attend(parts[0], parts[1], parts[2], plan)


def flex_way(bench: Bench, token_rows: TokenRows, parts: list[Tensor]) -> Way:
    """FlexAttention, compiled as transformers does; it has no backward on a CPU."""
    compiled = torch.compile(flex_attention, dynamic=False)
    blocks, group = block_mask(token_rows, None, bench.device), parts[0].shape[1] // parts[1].shape[1]
    return lambda: compiled(four(parts[0]), four(parts[1], group), four(parts[2], group), block_mask=blocks)


def dense_way(bench: Bench, token_rows: TokenRows, parts: list[Tensor]) -> Way:
    """SDPA under a dense mask."""
    mask = torch.from_numpy(visible(token_rows)).to(bench.device)[:, None]
    group = parts[0].shape[1] // parts[1].shape[1]
    return lambda: scaled_dot_product_attention(four(parts[0]), four(parts[1], group), four(parts[2], group), mask)


def causal_way(bench: Bench, parts: list[Tensor], length: int) -> Way:
    """What plain causal texts of one length would take, without trees: what there is to reach."""
    group = parts[0].shape[1] // parts[1].shape[1]

    def rows(values: Tensor, repeat: int) -> Tensor:
        return values.view(-1, length, *values.shape[1:]).transpose(1, 2).repeat_interleave(repeat, 1)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH if bench.toy else SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(
                rows(parts[0], 1), rows(parts[1], group), rows(parts[2], group), is_causal=True
            )

    return run


def measure(bench: Bench, setting: str, way: Way, parts: list[Tensor], flops: float) -> None:
    """Forward, and forward with backward; ``flops``: of the forward."""
    upstream = torch.randn_like(way())
    forward = bench.median(way, 8)
    both = bench.median(lambda: torch.autograd.grad(way(), parts, upstream), 8)
    bench.record(
        setting, forward_ms=1e3 * forward, both_ms=1e3 * both, forward_tflops=flops / forward / 1e12,
        both_tflops=(1 + BACKWARD) * flops / both / 1e12,
    )  # fmt: skip


def compare(bench: Bench, kind: str, heads: Heads) -> None:
    """Every way on the same texts."""
    lengths, most = lengths_of(bench, kind)
    token_rows = layout_of(lengths)
    parts = [part.requires_grad_() for part in inputs(bench, token_rows.ids.shape[1], heads)[:3]]
    whole = np.array(lengths, float) + 2 * PROMPT
    flops = float((2 * heads[0] * heads[2] * whole**2).sum())
    ways: dict[str, Callable[[], Way]] = {"varlen": lambda: varlen_way(bench, token_rows, parts)}
    if not bench.toy:
        ways["flex"] = lambda: flex_way(bench, token_rows, parts)
    if kind == "full":
        ways["dense"] = lambda: dense_way(bench, layout_of(lengths[:1], 1), [part[:most] for part in parts])
        ways["causal"] = lambda: causal_way(bench, parts, most)
    for name, make in ways.items():
        if bench.warm and name != "flex":
            continue
        setting = f"{name}, {kind} texts, {told(heads)}" + (", one text" if name == "dense" else "")
        share = 1 / len(lengths) if name == "dense" else 1.0
        bench.attempt(setting, lambda s=setting, m=make, f=share * flops: measure(bench, s, m(), parts, f))  # type: ignore[misc]


def main() -> None:
    """Right first, then fast."""
    bench = Bench(options_of(__doc__).parse_args())
    for heads, window in product(HEADS, (None, 20)):
        if not bench.warm:
            bench.attempt(f"varlen, {told(heads)}", check, bench, heads, window)
    for kind, heads in product(("full", "mixed"), HEADS):
        bench.attempt(f"{kind} texts, {told(heads)}", compare, bench, kind, heads)


if __name__ == "__main__":
    main()
