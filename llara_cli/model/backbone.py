"""The decoder: loading it from anywhere, and running its body over a layout through the public attention interface."""

from __future__ import annotations

import inspect
import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llara_cli.console import UserError
from llara_cli.model.layout import PADDING, Layout, Tree, lay_out, visible
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import TextTokenizer, first_line
from llara_cli.registry import missing_extra

MASKABLE_LAYERS = {"full_attention", "sliding_attention"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """``auto``: CUDA where there is one, else the CPU. Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: no CUDA device is visible to torch")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 on a GPU that has it, else fp32 (on most CPUs bf16 is an order of magnitude slower)."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The command-line name of a dtype."""
    return next(name for name, known in DTYPES.items() if known == dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and notes off the screen."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_config(source: ModelSource) -> Any:
    """The model's configuration. Raises ``UserError`` where there is none to be had."""
    options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source.location, trust_remote_code=source.remote_code, **options)
    except ImportError as error:
        raise missing_extra("gguf", "gguf") from error
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:  # a damaged GGUF ends in any of them
        raise UserError(_cannot_load(source, error)) from error


def _cannot_load(source: ModelSource, error: Exception) -> str:
    if source.is_local:
        return f"{source.path}: cannot load the model: {first_line(error)}"
    return (
        f"no model {source.location!r} in the workspace, on this disk or (as far as it can be reached) on the hub:"
        f" {first_line(error)}"
    )


def max_positions(config: Any) -> int | None:
    """Tokens that a configuration has positions for; None where it has no limit."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def load_causal_lm(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its vocabulary projection, on the CPU, in ``dtype``; safetensors or GGUF only.

    A GGUF is dequantised and its weights moved into a module built from the plain configuration, so that it can be
    saved like any other. Raises ``UserError`` where the files are missing or no causal language model.
    """
    config = load_config(source)
    try:
        with quiet_transformers():
            model = _from_gguf(source, dtype) if source.gguf_file else _from_checkpoint(source, config, dtype)
    except ImportError as error:
        raise missing_extra(f"what {source.path} needs ({first_line(error)})", "gguf") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_cannot_load(source, error)) from error
    model.config.use_cache = False
    return model


def _from_checkpoint(source: ModelSource, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    options = {"dtype": dtype, "trust_remote_code": source.remote_code, "use_safetensors": True}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source.location, config=config, **options)
    return model


def _from_gguf(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    options = {"gguf_file": source.gguf_file, "dtype": torch.float32}
    with redirect_stderr(io.StringIO()):  # its bar heeds none of transformers' switches
        loaded = AutoModelForCausalLM.from_pretrained(source.location, **options)
    config = loaded.config
    del config.quantization_config
    config._name_or_path = ""
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    for name, buffer in loaded.named_buffers():
        plain.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer, persistent=False)
    plain.generation_config = loaded.generation_config
    return plain.to(dtype)


def add_new_tokens(model: PreTrainedModel, tokenizer: TextTokenizer, tokens: tuple[str, ...], seed: int) -> list[int]:
    """Make ``tokens`` special tokens of tokenizer and model; the ids of those whose embeddings are untrained.

    A new row starts at the mean of all rows plus a little seeded noise, so that the slots differ from the start.
    """
    fresh = [token for token in tokens if token not in tokenizer.hf.get_added_vocab()]
    tokenizer.add_tokens(tokens)
    ids: list[int] = tokenizer.hf.convert_tokens_to_ids(fresh)
    if not ids:
        return []
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    known = table.num_embeddings
    if max(ids) >= known:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        _start_at_mean(layer.weight, ids, seed)
    return ids


@torch.no_grad()
def _start_at_mean(weight: Tensor, ids: list[int], seed: int) -> None:
    old = torch.ones(weight.shape[0], dtype=torch.bool)
    old[ids] = False
    noise = torch.randn(len(ids), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    spread = weight[old].float().std(dim=0) * 0.1
    weight[ids] = (weight[old].float().mean(dim=0) + noise * spread).to(weight.dtype)


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
        self.body: nn.Module = model.get_decoder()
        self.config = model.config.get_text_config()
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self._window = getattr(self.config, "sliding_window", None)
        if getattr(self.config, "use_sliding_window", True) is False:
            self._window = None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.body.parameters()).device

    @property
    def dim(self) -> int:
        """Width of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Rows of the vocabulary projection."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Tokens the model has positions for; None where it has no limit."""
        return max_positions(self.config)

    @property
    def projection(self) -> nn.Module:
        """The vocabulary projection W: (..., dim) -> (..., vocabulary)."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def attend_in_blocks(self) -> bool:
        """Switch to FlexAttention, which skips the blocks of a mask that are empty; False where the model cannot."""
        dropout = float(getattr(self.config, "attention_dropout", None) or 0)
        if not getattr(self.model, "_supports_flex_attn", False) or dropout > 0:
            return False
        self.model.set_attn_implementation("flex_attention")
        return True

    def hidden(self, layout: Layout) -> Tensor:
        """Last hidden states (R * L, dim) of a layout."""
        device = self.device
        given: dict[str, Any] = {"input_ids": torch.from_numpy(layout.ids).to(device), "use_cache": False}
        if not layout.plain:
            given["attention_mask"] = self._mask(layout)
            given["position_ids"] = torch.from_numpy(layout.positions).to(device)
        output: Tensor = self.body(**given).last_hidden_state
        return output.reshape(-1, output.shape[-1])

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
        ids = np.random.default_rng(0).integers(0, self.config.vocab_size, 19)
        trunk, first, second = ids[:8].tolist(), ids[8:15].tolist(), ids[15:].tolist()
        training = self.model.training
        self.model.eval()
        try:
            joint = self.slots(lay_out([Tree(trunk, [first, second])]))
            alone = self.slots(lay_out([Tree(trunk, [first]), Tree(trunk, [second])]))
        except (RuntimeError, TypeError, ValueError):
            return False
        finally:
            self.model.train(training)
        error = (joint - alone).float().norm() / alone.float().norm()
        return bool(error < (1e-3 if joint.dtype in (torch.float32, torch.float64) else 5e-2))
