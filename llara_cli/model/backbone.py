"""The decoder's body, run over a layout through the public attention interface; where and in what it computes."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from llara_cli.console import LlaraError, UserError
from llara_cli.model.batching import Batching
from llara_cli.model.body import FAILURES, evaluating, find_body, reason, rope_switch, tolerance, width
from llara_cli.model.layout import PADDING, Layout, Tree, lay_out, visible
from llara_cli.model.loading import max_positions
from llara_cli.model.logits import Logits, find_logits
from llara_cli.model.products import Products, lean_training

ROW_TOKENS, BLOCK_TOKENS = 256, 128
"""Tokens of a packed row under a dense mask (on CPUs longer ones waste attention), and of a block of a sparse mask."""
MASKABLE_LAYERS = {"full_attention", "sliding_attention"}
TRIAL_TOKENS = 16
"""Tokens that a model is tried on."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """``auto``: CUDA where there is one, else the CPU. Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: no CUDA device is visible to torch")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 on a GPU that computes in it, else fp32 (CPUs and older GPUs emulate it, at a loss of speed)."""
    if name == "auto":
        computed = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if computed else "fp32"
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The command-line name of a dtype."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """``visible`` as FlexAttention takes it: by blocks, so that those where nothing is seen cost nothing."""
    tree, branch, positions = (
        torch.from_numpy(part).to(device) for part in (layout.tree, layout.branch, layout.positions)
    )

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (tree[row, query] == tree[row, key]) & (tree[row, query] != PADDING) & (query >= key)
        same = same & ((branch[row, key] == 0) | (branch[row, key] == branch[row, query]))
        if window is not None:
            same = same & (positions[row, query] - positions[row, key] < window)
        return same | (query == key)

    rows, width = layout.ids.shape
    return create_block_mask(sees, rows, None, width, width, device=device, _compile=device.type == "cuda")


class Backbone:
    """The body of a causal LM: token ids in, last hidden states (after the final norm) out; no logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.body = find_body(model)
        self.config = model.config.get_text_config()
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self._window = getattr(self.config, "sliding_window", None)
        if getattr(self.config, "use_sliding_window", True) is False:
            self._window = None
        self._rope_switch = rope_switch(self.config)
        self._lean = False

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
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
        """Rows of the embedding: the model knows the ids below."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Tokens the model has positions for; None where it has no limit."""
        return max_positions(self.config)

    @property
    def projection(self) -> nn.Module:
        """The vocabulary projection W; ``logits`` says what else a model does between hidden states and logits.

        Raises ``UserError`` where the model has none.
        """
        head: nn.Module | None = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{self.config.model_type}: {type(self.model).__name__} has no output embeddings")
        return head

    @cached_property
    def logits(self) -> Logits:
        """How logits come from hidden states, found once by trying. Raises ``UserError`` where that cannot be told."""
        if self.config._attn_implementation != "flex_attention":
            return find_logits(self.model, self.body, self.projection)
        self.model.set_attn_implementation("sdpa")  # the other would be compiled for a few tokens
        try:
            return find_logits(self.model, self.body, self.projection)
        finally:
            self.model.set_attn_implementation("flex_attention")

    def freeze_projection(self) -> None:
        """Train no weight that the body does not have: none of the projection's, unless it is its embeddings'."""
        own = {id(weight) for weight in self.body.parameters()}
        for weight in self.model.parameters():
            if id(weight) not in own:
                weight.requires_grad_(False)

    def attend_in_blocks(self) -> bool:
        """Switch to FlexAttention, which skips the blocks of a mask that are empty; False where the model cannot."""
        dropout = float(getattr(self.config, "attention_dropout", None) or 0)
        if not getattr(self.model, "_supports_flex_attn", False) or dropout > 0:
            return False
        self.model.set_attn_implementation("flex_attention")
        return True

    def batching(self, layout: str, budget: int) -> Batching:
        """The layout that suits this device, or the one called for: ``packed``, ``bucketed`` or ``auto``.

        Packed rows are as long as a forward where empty blocks of the mask cost nothing, short ones where they do.
        """
        switch = self._rope_switch
        if layout == "bucketed":
            return Batching("bucketed", budget, ROW_TOKENS, switch=switch)
        if self.device.type == "cuda" and self.attend_in_blocks():
            return Batching("packed", budget, budget, BLOCK_TOKENS, switch)
        return Batching("packed", budget, ROW_TOKENS, switch=switch)

    def recompute_in_backward(self) -> None:
        """Keep a layer's input only, and compute the layer again in backward: less memory, a third more time."""
        # transformers is renaming the method; 5.17 knows the old name alone
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        if enable is not None:
            enable()
        else:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.enable_input_require_grads()

    def train_lean(self) -> None:
        """On a CPU, keep less for backward and add gradients where they are (``lean_training``)."""
        self._lean = True

    def hidden(self, layout: Layout) -> Tensor:
        """Last hidden states (R * L, dim) of a layout."""
        device = self.device
        given: dict[str, Any] = {"input_ids": torch.from_numpy(layout.ids).to(device), "use_cache": False}
        if not layout.plain or self._padding_would_count(layout):
            given["attention_mask"] = self._mask(layout)
            given["position_ids"] = torch.from_numpy(layout.positions).to(device)
        with self._products():
            output: Tensor = self.body(**given).last_hidden_state
        return output.reshape(-1, output.shape[-1])

    def _padding_would_count(self, layout: Layout) -> bool:
        """Whether rows, padded, are wider than the model has positions for, or than it takes another way to compute."""
        limits = (limit for limit in (self._rope_switch, self.max_positions) if limit is not None)
        return any(layout.positions.max(initial=0) < limit < layout.ids.shape[1] for limit in limits)

    def _products(self) -> AbstractContextManager[Any]:
        """Around the body: how its matrices are multiplied."""
        compiled = getattr(self.body, "_compiled_call_impl", None) is not None
        if self.device.type != "cpu" or compiled:
            return nullcontext()
        return lean_training() if self._lean and torch.is_grad_enabled() else Products()

    def slots(self, layout: Layout) -> Tensor:
        """Hidden states at the slots of every branch: (branches, slots, dim)."""
        return self.hidden(layout)[torch.from_numpy(layout.slots).to(self.device)]

    def _mask(self, layout: Layout) -> Any:
        """The mask as this model's attention takes it; per layer type where the types differ."""
        types = set(getattr(self.config, "layer_types", None) or ())
        if len(types) > 1:
            windows = {kind: self._window if kind == "sliding_attention" else None for kind in types}
            return {kind: self._attention_mask(layout, window) for kind, window in windows.items()}
        return self._attention_mask(layout, None if types == {"full_attention"} else self._window)

    def _attention_mask(self, layout: Layout, window: int | None) -> Tensor | BlockMask:
        if self.config._attn_implementation == "flex_attention":
            return block_mask(layout, window, self.device)
        seen = torch.from_numpy(visible(layout, window)).to(self.device)[:, None]
        if self.config._attn_implementation == "sdpa":
            return seen
        # eager attention adds the mask to the scores: a boolean one would be silently wrong there
        dtype = (
            torch.get_autocast_dtype(self.device.type)
            if torch.is_autocast_enabled(self.device.type)
            else self.body.dtype
        )
        assert isinstance(dtype, torch.dtype)
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, torch.finfo(dtype).min)

    @torch.no_grad()
    def runs_jointly(self) -> bool:
        """Whether one forward over a tree equals one per branch: tried on a few tokens of this very model.

        False for decoders that take no mask or positions as given (ALiBi, recurrent, hybrid, chunked attention).
        """
        types = set(getattr(self.config, "layer_types", None) or ())
        if not self._takes_positions or types - MASKABLE_LAYERS:
            return False
        ids = np.random.default_rng(0).integers(0, self.embedded_tokens, 19)
        trunk, first, second = ids[:8].tolist(), ids[8:15].tolist(), ids[15:].tolist()
        try:
            with evaluating(self.model):
                joint = self.slots(lay_out([Tree(trunk, [first, second])]))
                alone = self.slots(lay_out([Tree(trunk, [first]), Tree(trunk, [second])]))
        except (RuntimeError, TypeError, ValueError):
            return False
        error = (joint - alone).float().norm() / alone.float().norm()
        return bool(error < (1e-3 if joint.dtype in (torch.float32, torch.float64) else 5e-2))

    def check(self, where: str) -> None:
        """Try the body on a few tokens: it must return hidden states, which no later token may change.

        ``where`` names the model. Raises ``UserError`` where the body is no causal decoder of token ids.
        """
        kind = self.config.model_type
        positions = self.max_positions
        tokens = TRIAL_TOKENS if positions is None or positions < 2 else min(TRIAL_TOKENS, positions)
        earlier = slice(0, tokens // 2)
        ids = np.random.default_rng(1).integers(min(5, self.embedded_tokens - 1), self.embedded_tokens, (2, tokens))
        ids[1, earlier] = ids[0, earlier]
        try:
            with evaluating(self.model):
                hidden = self.hidden(lay_out([Tree(row, []) for row in ids]))
        except FAILURES as error:
            raise UserError(f"{where}: {kind} does not run on token ids alone: {reason(error)}") from error
        if not hidden.isfinite().all():
            raise LlaraError(
                f"{where}: {kind} gives NaN or infinite hidden states: its weights are damaged, or too large for "
                f"{dtype_name(hidden.dtype)}: try --dtype fp32 or bf16"
            )
        if hidden.shape != (2 * tokens, self.dim):
            raise UserError(f"{where}: {kind} returns hidden states of width {hidden.shape[-1]}, expected {self.dim}")
        one, other = hidden.float().view(2, tokens, self.dim)[:, earlier]
        # not the largest: rounding may send a single token to another expert
        if float(((one - other).norm(dim=-1) / one.norm(dim=-1)).median()) > tolerance(hidden):
            why = " (is_decoder: false)" if getattr(self.config, "is_decoder", None) is False else ""
            raise UserError(
                f"{where}: {kind}{why} is not a causal decoder: hidden states depend on later tokens;"
                " encode with --encoder sentence-transformers"
            )
