"""Sliding windows of a decoder's layers, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Windows:
    """Sliding windows in positions, the query's own included; None: a layer sees everything before.

    Attributes:
        kinds: the window of each kind of layer, by transformers' name of the kind.
        layers: the window of each layer.
    """

    kinds: dict[str, int | None]
    layers: list[int | None]

    @classmethod
    def of(cls, config: Any) -> Windows:
        """The windows in a text model's configuration."""
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        one = FULL if window is None else SLIDING
        names = getattr(config, "layer_types", None) or [one] * int(getattr(config, "num_hidden_layers", 1))
        kinds = {name: window if name == SLIDING else None for name in names}
        return cls(kinds, [kinds[name] for name in names])

    @property
    def maskable(self) -> bool:
        """Whether a mask can describe what each layer sees."""
        return self.kinds.keys() <= {SLIDING, FULL}
