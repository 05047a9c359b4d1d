"""The decoder's body, run over token rows through the public attention interface, and its device and dtype."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from llara_cli.core.errors import UserError
from llara_cli.cpu import CpuKernels, lean_training
from llara_cli.model import self_test
from llara_cli.model.architecture import DTYPES, compute_dtype, decoder_layers, find_body, rope_switch, width
from llara_cli.model.batching import Batching, forward_tokens
from llara_cli.model.block_mask import block_mask, row_multiple
from llara_cli.model.float8 import compute_in_float8
from llara_cli.model.loading import max_positions
from llara_cli.model.logits import Logits, find_logits
from llara_cli.model.sequences import TokenRows, visible
from llara_cli.model.sliding_window import Windows
from llara_cli.model.to_device import to_device
from llara_cli.model.varlen import VARLEN, mark_dynamic, plan_of, why_no_kernel

ROW_TOKENS = 256
"""Tokens of a packed row under a dense mask (on CPUs longer ones waste attention)."""
COMPILED_SHAPES = 64
"""Most shapes that layers or FlexAttention are compiled for; other shapes run uncompiled, more slowly."""
FLEX = "flex_attention"
"""FlexAttention, as transformers calls it."""


def choose_device(name: str = "auto") -> torch.device:
    """``auto``: CUDA if available, else the CPU. Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: no CUDA device is visible to torch")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 on a GPU that supports it, else fp32 (CPUs and older GPUs emulate bf16, which is slow)."""
    if name == "auto":
        computed = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if computed else "fp32"
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def allow_shapes() -> None:
    """Let this process compile for up to ``COMPILED_SHAPES`` shapes; PyTorch's own limit is 8."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)


def refuse_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ``UserError`` for an attention implementation that does not support the device or ``dtype``."""
    if name == "flex" and device.type != "cuda":
        raise UserError("`attention='flex'` needs a CUDA device: elsewhere FlexAttention has no backward; use dense")
    if name == "varlen" and (why := why_no_kernel(device, dtype)) is not None:
        raise UserError(f"`attention='varlen'`: {why}; use dense")


class Decoder:
    """The body of a causal LM: token ids in, last hidden states (after the final norm) out; no logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.body = find_body(model)
        self.config = model.config.get_text_config()
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self.windows = Windows.of(self.config)
        self._rope_switch = rope_switch(self.config)
        self._lean = self._compiled = False
        self._dense = self.config._attn_implementation
        self._chosen = "auto"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.body.parameters()).device

    @property
    def dim(self) -> int:
        """Width of a hidden state."""
        return width(self.config)

    @property
    def vocabulary(self) -> int:
        """Rows of the vocabulary projection."""
        weight = self.projection.weight
        assert isinstance(weight, Tensor)
        return len(weight)

    @property
    def embedded_tokens(self) -> int:
        """Rows of the embedding: ids must be less than this."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model has positions for; None if it has no limit."""
        return max_positions(self.config)

    @property
    def projection(self) -> nn.Module:
        """The vocabulary projection W; ``logits`` has what else happens between hidden states and logits.

        Raises ``UserError`` if the model has none.
        """
        head: nn.Module | None = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{self.config.model_type}: {type(self.model).__name__} has no output embeddings")
        return head

    @cached_property
    def logits(self) -> Logits:
        """How logits are computed from hidden states, found by two forwards. Raises ``UserError`` if that fails."""
        with self.attending():  # another would be compiled for a few tokens, or miss their segments
            return find_logits(self.model, self.body, self.projection)

    def freeze_projection(self) -> None:
        """Freeze weights outside the body: the projection's, unless it is tied to the embeddings."""
        own = {id(weight) for weight in self.body.parameters()}
        for weight in self.model.parameters():
            if id(weight) not in own:
                weight.requires_grad_(False)

    def use_attention(self, name: str) -> None:
        """Choose how attention is computed: ``dense`` (with a mask), ``flex`` (FlexAttention) or ``varlen`` (segments).

        ``auto``: dense, until ``choose_attention`` is called for packed rows on CUDA. Call it under autocast
        if the model is going to run under autocast. Raises ``UserError`` if model or device do not support it.
        """
        refuse_attention(name, self.device, compute_dtype(next(self.body.parameters())))
        if name == "flex":
            self._use_flex()
        elif name == "varlen":
            self._use_varlen()
        self._chosen = name

    @property
    def attention(self) -> str:
        """How attention is computed: ``dense``, ``flex`` or ``varlen``."""
        return {FLEX: "flex", VARLEN: "varlen"}.get(self.config._attn_implementation, "dense")

    @property
    def rows_are_free(self) -> bool:
        """Whether attention skips tokens that cannot see each other, so that long packed rows cost nothing extra."""
        return self.attention != "dense"

    def _use_flex(self) -> None:
        if not self.attend_in_blocks():
            why = "has dropout in attention" if self.drops_attention else "does not support FlexAttention"
            raise UserError(f"`attention='flex'`: {self.config.model_type} {why}; use dense")

    def attend_in_blocks(self) -> bool:
        """Switch to FlexAttention, which skips empty blocks of the mask; False where the model does not support it."""
        if not getattr(self.model, "_supports_flex_attn", False) or self.drops_attention:
            return False
        self.model.set_attn_implementation(FLEX)
        allow_shapes()
        return True

    @property
    def drops_attention(self) -> bool:
        """Whether attention has dropout, which only dense attention supports."""
        return float(getattr(self.config, "attention_dropout", None) or 0) > 0

    def _use_varlen(self) -> None:
        if (why := self_test.why_not_varlen(self)) is not None:
            raise UserError(f"`attention='varlen'`: {why}; use dense")
        self.model.set_attn_implementation(VARLEN)

    @property
    def takes_trees(self) -> bool:
        """Whether the model uses the positions given, and a mask can describe every layer's attention."""
        return self._takes_positions and self.windows.maskable

    @contextmanager
    def attending(self, implementation: str | None = None) -> Iterator[None]:
        """Context with another of transformers' attention implementations; None: the dense one."""
        implementation = implementation or self._dense
        before = self.config._attn_implementation
        if implementation != before:
            self.model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            if implementation != before:
                self.model.set_attn_implementation(before)

    def choose_attention(self, layout: str) -> None:
        """Use FlexAttention for packed rows on CUDA where the model supports it, unless the user chose another."""
        if layout != "bucketed" and self._chosen == "auto" and self.device.type == "cuda":
            self.attend_in_blocks()

    def batching(self, layout: str, budget: int) -> Batching:
        """How sequences become forwards, in the given layout: ``packed``, ``bucketed`` or ``auto``.

        Packed rows are as long as a forward where attention costs nothing between texts, short ones where it does.
        """
        parameters = sum(weight.numel() for weight in self.body.parameters())
        switch, overhead = self._rope_switch, forward_tokens(self.device.type, parameters)
        if layout == "bucketed":
            return Batching("bucketed", budget, switch=switch, forward_tokens=overhead)
        if not self.rows_are_free:
            return Batching("packed", budget, ROW_TOKENS, 1, switch, overhead)
        few_widths = self._compiled or self.attention == "flex"
        return Batching("packed", budget, None, row_multiple(budget) if few_widths else 1, switch, overhead)

    def recompute_in_backward(self, every: int = 1) -> None:
        """Keep the input only of every ``every``-th layer, and recompute the rest in backward: less memory, more time.

        Raises ``UserError`` if the model cannot.
        """
        if not self.model.supports_gradient_checkpointing:
            raise UserError(
                f"{self.config.model_type} has no gradient checkpointing: leave `execution.gradient_checkpointing` out"
            )
        # transformers is renaming the method; 5.17 knows the old name alone
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(every_n_layers=every)
        else:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
            )
        self.model.enable_input_require_grads()

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """``torch.compile`` each decoder layer; layers are alike, so code compiled for one serves all.

        Compiled for the first width of a row, and once more for all others. Raises ``UserError`` if the body has no
        list of layers.
        """
        _ = self._joint  # tried before: it would be compiled for, and a compiler's errors taken for the model's
        for layer in decoder_layers(self.body, self.config):
            layer.compile(backend=backend)
        allow_shapes()
        self._compiled = True

    def multiply_in_float8(self, *, emulate: bool = False) -> None:
        """``compute_in_float8`` of the body, after the trial forwards that must run in full precision."""
        _ = self._joint
        compute_in_float8(self.body, emulate=emulate)

    def train_lean(self) -> None:
        """On a CPU, keep less for backward and add gradients in place (``lean_training``)."""
        self._lean = True

    def hidden(self, token_rows: TokenRows, windows: list[int | None] | None = None) -> Tensor:
        """Last hidden states (R * L, dim) of token rows.

        ``windows``: list to which ``varlen`` appends the sliding window that each layer asks for.
        """
        with self._products():
            output: Tensor = self.body(**self._inputs(token_rows, windows), use_cache=False).last_hidden_state
        return output.reshape(-1, output.shape[-1])

    def _inputs(self, token_rows: TokenRows, windows: list[int | None] | None) -> dict[str, Any]:
        """Keyword arguments of the body."""
        device, implementation = self.device, self.config._attn_implementation
        ids, positions = (to_device(part, device) for part in (token_rows.ids, token_rows.positions))
        if implementation == VARLEN:  # segments know no rows: all rows, one after the other, are one
            segments = plan_of(token_rows, device)._replace(windows=windows)
            if self._compiled:
                mark_dynamic(segments)
            return {"input_ids": ids.reshape(1, -1), "position_ids": positions.reshape(1, -1), "segments": segments}
        if token_rows.plain and implementation != FLEX and not self._padding_would_count(token_rows):
            return {"input_ids": ids}
        return {"input_ids": ids, "position_ids": positions, "attention_mask": self._mask(token_rows)}

    def _padding_would_count(self, token_rows: TokenRows) -> bool:
        """Whether padding makes rows wider than the model's positions, or than LongRoPE's switch."""
        limits = (limit for limit in (self._rope_switch, self.max_positions) if limit is not None)
        return any(token_rows.positions.max(initial=0) < limit < token_rows.ids.shape[1] for limit in limits)

    def _products(self) -> AbstractContextManager[Any]:
        """Context of the body's forward: the CPU kernels, where they apply."""
        if self.device.type != "cpu" or self._compiled or self.attention == "flex":
            return nullcontext()
        return lean_training() if self._lean and torch.is_grad_enabled() else CpuKernels()

    def slots(self, token_rows: TokenRows) -> Tensor:
        """Hidden states at the slots of every branch: (branches, slots, dim)."""
        return self.hidden(token_rows)[to_device(token_rows.slots, self.device)]

    def _mask(self, token_rows: TokenRows) -> Any:
        """The mask in the form that this model's attention takes; one per layer type where the types differ."""
        masks = {kind: self._attention_mask(token_rows, window) for kind, window in self.windows.kinds.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _attention_mask(self, token_rows: TokenRows, window: int | None) -> Tensor | BlockMask:
        if self.config._attn_implementation == FLEX:
            return block_mask(token_rows, window, self.device)
        seen = to_device(visible(token_rows, window), self.device)[:, None]
        if self.config._attn_implementation == "sdpa":
            return seen
        # eager attention adds the mask to the scores: a boolean one would be silently wrong there
        dtype = compute_dtype(next(self.body.parameters()))
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def runs_jointly(self) -> bool:
        """Whether one forward over a tree equals one forward per branch, tested on a few tokens.

        False for decoders that do not use the mask or positions given (ALiBi, recurrent, hybrid, chunked attention).
        """
        return self._joint

    @cached_property
    def _joint(self) -> bool:
        with self.attending():
            return self_test.runs_jointly(self)

    def check(self, where: str) -> None:
        """Test the body on a few tokens: it must return hidden states that do not depend on later tokens.

        ``where`` names the model. Raises ``UserError`` if the body is no causal decoder of token ids.
        """
        self_test.check(self, where)
