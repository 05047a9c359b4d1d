"""Operations a token, against sums worked out by hand for SmolLM2-135M's and Llama-2-7B's shapes."""

from __future__ import annotations

import pytest
from gpu.shapes import SHAPES, datasheet_peak, encoding_flops, training_flops

SMALL, LARGE = SHAPES["135M"], SHAPES["7B"]


def test_weights_of_the_body() -> None:
    # a layer: q and o 2 x 576 x 576, k and v 2 x 576 x 192, the feed-forward part 3 x 576 x 1536
    assert SMALL.body == 30 * (663_552 + 221_184 + 2_654_208) == 106_168_320
    assert LARGE.body == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) == 6_476_005_376


def test_operations_of_a_training_step() -> None:
    weights, attention = 6 * 106_168_320, 6 * 576 * 1024 * 30
    assert training_flops(SMALL, 1024) == weights + attention + 12 * 49_152 * 576 / 1024 == 743_510_016
    released = weights + attention + 6 * 49_152 * 576 * (1 + 16 / 1024)
    assert training_flops(SMALL, 1024, "released") == released == 915_701_760


def test_a_frozen_base_saves_the_gradients_of_its_weights() -> None:
    attention, logits = 6 * 4096 * 512 * 32, 12 * 32_000 * 4096 / 512
    wanted = 4 * 6_476_005_376 + 6 * 159_907_840 + attention + logits
    assert training_flops(LARGE, 512, adapter=159_907_840) == wanted == 27_269_193_728


def test_operations_of_encoding() -> None:
    assert encoding_flops(SMALL, 200) == 2 * 106_168_320 + 2 * 576 * 200 * 30 == 219_248_640


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_cards_that_are_known(card: str, peak: float | None) -> None:
    assert datasheet_peak(card) == peak
