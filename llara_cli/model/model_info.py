"""Size and shape of a model, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llara_cli.model.architecture import linear_layers
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import model_of_shapes
from llara_cli.model.source import ModelSource


def token_numbers(model: torch.nn.Module, dim: int) -> int:
    """Numbers per token that a forward without gradients holds at its peak, in the feed-forward part of a layer.

    These are the layer's input, normalized and not, the products and the activation. ``dim``: hidden size.
    """
    sizes = [(each.in_features, each.out_features) for each in model.modules() if isinstance(each, torch.nn.Linear)]
    return 3 * (dim + max((max(size) for size in sizes if dim in size), default=dim))


@dataclass(frozen=True)
class ModelFacts:
    """Size and shape of a model."""

    parameters: int
    linear_parameters: int
    hidden_size: int
    layers: int
    vocabulary: int
    embedded_tokens: int
    max_positions: int | None
    token_numbers: int

    @classmethod
    def of(cls, source: ModelSource) -> ModelFacts:
        """Read the configuration and build the module without weights."""
        model = model_of_shapes(source)
        body = Decoder(model)
        return cls(
            parameters=sum(weight.numel() for weight in model.parameters()),
            linear_parameters=sum(layer.weight.numel() for layer in linear_layers(model).values()),
            hidden_size=body.dim,
            layers=int(getattr(body.config, "num_hidden_layers", 1)),
            vocabulary=body.vocabulary,
            embedded_tokens=body.embedded_tokens,
            max_positions=body.max_positions,
            token_numbers=token_numbers(body.body, body.dim),
        )
