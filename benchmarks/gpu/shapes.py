"""The models that are measured, by their shapes, and the operations that a token of a text costs in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Logits = Literal["paper", "released"]


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, named as its configuration names them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def body(self) -> int:
        """Weights of the linear layers, the vocabulary projection apart."""
        width = self.hidden_size // self.num_attention_heads
        queries, keys = self.num_attention_heads * width, self.num_key_value_heads * width
        layer = self.hidden_size * (2 * queries + 2 * keys + 3 * self.intermediate_size)
        return self.num_hidden_layers * layer

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of ``LlamaConfig``."""
        return asdict(self) | {"max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1}

    def toy(self) -> Shape:
        """A few narrow heads, as many of queries to one of keys, in two layers: for a dry run on a CPU."""
        heads = 2 * self.num_attention_heads // self.num_key_value_heads
        return Shape(4096, 16 * heads, 96, 2, heads, 2)

    def one_layer(self) -> Shape:
        """What is compiled for one layer serves all."""
        return replace(self, num_hidden_layers=1)


SHAPES = {
    "135M": Shape(49152, 576, 1536, 30, 9, 3),
    "1B": Shape(32000, 2048, 5632, 22, 32, 4),
    "7B": Shape(32000, 4096, 11008, 32, 32, 32),
}


def training_flops(shape: Shape, length: int, logits: Logits = "paper", adapter: int | None = None) -> float:
    """Operations of one step a token, in a causal text of ``length`` tokens; what is recomputed is not counted.

    Two for each weight of the body forward and four backward, of which a frozen base (``adapter``: weights of the
    adapter that trains on it) saves those of its own gradients; attention over half of the text on average; the rows of
    logits of a text, two under the recipe ``paper``, under ``released`` one a token and sixteen slots.
    """
    body = 6 * shape.body if adapter is None else 4 * shape.body + 6 * adapter
    attention = 6 * shape.hidden_size * length * shape.num_hidden_layers
    rows = 2 if logits == "paper" else length + 16
    return body + attention + 6 * shape.vocab_size * shape.hidden_size * rows / length


def encoding_flops(shape: Shape, length: int) -> float:
    """Operations of one forward without logits a token, in a causal text of ``length`` tokens."""
    return 2 * shape.body + 2 * shape.hidden_size * length * shape.num_hidden_layers


def datasheet_peak(card: str) -> float | None:
    """Dense bf16 FLOP/s that the datasheet of a card promises; None for a card that is not known."""
    sxm = card.startswith(("NVIDIA H100 80GB HBM3", "NVIDIA H200")) and "NVL" not in card
    return 989e12 if sxm else None
