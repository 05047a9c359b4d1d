"""How a causal language model gets from its last hidden states to its logits.

Most multiply by the vocabulary projection and do no more. Granite divides the logits by a constant, Cohere multiplies
them, MiniCPM divides the hidden states, Gemma 2 soft-caps the logits (``cap * tanh(logits / cap)``), BERT-style heads
have a dense layer before the projection. To find out what a model does, its own ``forward`` is run with chosen hidden
states and chosen products, and the result checked against its logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llara_cli.core.errors import UserError
from llara_cli.cpu import wide
from llara_cli.model.architecture import FAILURES, evaluating, reason, tolerance

TRIAL_TOKENS = 7
"""Tokens of a trial forward."""
LARGEST = 1e6
"""The largest product that the logits' function is tested on."""


@dataclass(frozen=True)
class Logits:
    """The logits of hidden states h: ``cap * tanh(scale * (W t(input_scale * h) + b) / cap)``.

    Attributes:
        input_scale: factor on the hidden states.
        transform: t, a module in front of the projection W; None: there is none.
        scale: factor on the products with W and on the bias b.
        cap: soft cap of the logits; None: no cap.
    """

    input_scale: float = 1.0
    transform: nn.Module | None = None
    scale: float = 1.0
    cap: float | None = None

    def head_input(self, hidden: Tensor) -> Tensor:
        """Input of W, (..., width of W), for hidden states (..., dim)."""
        scaled = hidden if self.input_scale == 1 else hidden * self.input_scale
        return scaled if self.transform is None else self.transform(scaled)

    def of(self, products: Tensor) -> Tensor:
        """Logits of products ``W x + b``, of the same shape."""
        scaled = products if self.scale == 1 else products * self.scale
        return scaled if self.cap is None else soft_cap(scaled, self.cap)


PLAIN = Logits()
"""Plain logits: the products with W."""


def soft_cap(values: Tensor, cap: float) -> Tensor:
    """``cap * tanh(values / cap)``, in float32 at least."""
    return (values.to(wide(values)) / cap).tanh() * cap


def find_logits(model: PreTrainedModel, body: nn.Module, head: nn.Module) -> Logits:
    """How ``model`` computes its logits from the last hidden states of ``body``, with ``head`` as W.

    Two forwards of a few tokens. Raises ``UserError`` if ``Logits`` cannot express it.
    """
    kind = model.config.model_type
    try:
        with evaluating(model):
            found = _Trial(model, body, head).found()
            error = _error(model, body, head, found)
    except FAILURES as failure:
        raise UserError(f"{kind}: its logits cannot be computed from its hidden states: {reason(failure)}") from failure
    except _OtherwiseError as otherwise:
        raise UserError(
            f"{kind}: its logits cannot be computed from its hidden states, which pre-training needs: {otherwise}"
        ) from otherwise
    if error:
        raise UserError(f"{kind}: its logits are not those of its hidden states (a relative error of {error:.1g})")
    return found


class _OtherwiseError(Exception):
    """The model does something that ``Logits`` cannot express."""


def _ids(model: PreTrainedModel) -> Tensor:
    """Ids (1, tokens), none of the lowest, which are often special tokens."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, size - 1), size, (1, TRIAL_TOKENS), generator=generator)
    return ids.to(next(model.parameters()).device)


def _error(model: PreTrainedModel, body: nn.Module, head: nn.Module, logits: Logits) -> float | None:
    """Relative error of the logits computed here against the model's own; None if they are equal."""
    outputs: list[Any] = []
    with _hooked(body, lambda module, given, made: outputs.append(made)):
        wanted = model(input_ids=_ids(model), use_cache=False).logits
    given = logits.head_input(outputs[0].last_hidden_state)
    weight = head.weight
    assert isinstance(weight, Tensor)
    found = logits.of(head(given.to(weight.dtype)))  # some decoders return float32 whatever the dtype of their weights
    error = float((found - wanted).float().norm() / wanted.float().norm().clamp(min=1e-30))
    allowed = max(tolerance(part) for part in (given, found, wanted))
    return None if error < allowed else error


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Trial:
    """One forward in which the body returns chosen hidden states, and the head chosen products."""

    def __init__(self, model: PreTrainedModel, body: nn.Module, head: nn.Module) -> None:
        self._inside = set(body.modules()) | set(head.modules())
        self._hidden: Tensor | None = None
        self._head_inputs: list[Tensor] = []
        self._products: Tensor | None = None
        self._passed: list[tuple[nn.Module, Tensor, Tensor]] = []
        between = [part for part in model.modules() if part not in self._inside and part is not model]
        with ExitStack() as hooks:
            hooks.enter_context(_hooked(body, self._replace_hidden))
            hooks.enter_context(_hooked(head, self._replace_products))
            for part in between:
                hooks.enter_context(_hooked(part, self._pass))
            self._logits: Tensor = model(input_ids=_ids(model), use_cache=False).logits

    def _replace_hidden(self, module: nn.Module, given: Any, made: Any) -> Any:
        states = made.last_hidden_state
        random = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
        self._hidden = made.last_hidden_state = random.to(states)
        return made

    def _replace_products(self, module: nn.Module, given: Any, made: Tensor) -> Tensor:
        self._head_inputs.append(given[0])
        self._products = _grid(made.shape, made.device)
        return self._products

    def _pass(self, module: nn.Module, given: Any, made: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(made, Tensor):
            self._passed.append((module, given[0], made))

    def found(self) -> Logits:
        """Raises ``_OtherwiseError``."""
        if self._hidden is None or self._products is None or len(self._head_inputs) != 1:
            raise _OtherwiseError("its forward does not call its decoder and its output embeddings, each once")
        scale, cap = self._function()
        (given,) = self._head_inputs
        if (factor := _factor(given, self._hidden)) is not None:
            return Logits(factor, None, scale, cap)
        return Logits(1.0, self._transform(given, self._hidden), scale, cap)

    def _transform(self, given: Tensor, hidden: Tensor) -> nn.Module:
        """The one module between the hidden states and the head."""
        for module, before, after in self._passed:
            if before.shape == hidden.shape and torch.equal(before, hidden) and after is given:
                return module
        raise _OtherwiseError("what its output embeddings are given is not made of hidden states by one module")

    def _function(self) -> tuple[float, float | None]:
        """Scale and cap of the function from products to logits."""
        assert self._products is not None
        if self._logits.shape != self._products.shape:
            raise _OtherwiseError("it has another number of logits than output embeddings")
        products, logits = (part.cpu().double().flatten() for part in (self._products, self._logits))
        least, most = int(products.abs().argmin()), int(products.argmax())
        scale, cap = float(logits[most] / products[most]), None
        if not math.isclose(float(logits[least] / products[least]), scale, rel_tol=1e-4):
            scale, cap = float(logits[least] / products[least]), abs(float(logits[most]))
        made = Logits(scale=scale, cap=cap).of(products)
        if not torch.allclose(made, logits, rtol=1e-4, atol=1e-6):
            raise _OtherwiseError("its logits are neither scaled products nor softly capped ones")
        return (1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale), cap


def _grid(shape: torch.Size, device: torch.device) -> Tensor:
    """Products of all sizes and both signs, in float64 where the device has it, whatever the head's dtype."""
    sizes = torch.logspace(-3, math.log10(LARGEST), 97, dtype=torch.float64)
    both = torch.cat([sizes, -sizes])
    grid = both.repeat(-(-shape.numel() // len(both)))[: shape.numel()].view(shape)
    return grid.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _factor(given: Tensor, hidden: Tensor) -> float | None:
    """c of ``given = c * hidden``; None if it is something else."""
    if given.shape != hidden.shape:
        return None
    if torch.equal(given, hidden.to(given.dtype)):
        return 1.0
    one, other = given.cpu().double(), hidden.cpu().double()
    factor = float((one * other).sum() / (other * other).sum())
    near = float((one - factor * other).norm() / one.norm().clamp(min=1e-30)) < tolerance(given)
    return factor if near else None
