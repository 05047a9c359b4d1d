"""Decoders from anywhere: checkpoints, GGUF files, adapters on a base; and rows for tokens that a model never saw."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llara_cli.console import UserError
from llara_cli.model.adapted import base_of, put_together, refuse_changed
from llara_cli.model.source import ModelSource
from llara_cli.model.tokens import TextTokenizer, first_line
from llara_cli.registry import missing_extra


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
    if source.is_adapter:
        return _from_adapter(source).to(dtype)
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


def _from_adapter(source: ModelSource) -> PreTrainedModel:
    base, told = base_of(source)
    if not base.is_local:
        load_config(base)  # puts a hub model into the cache, where its fingerprint is read
    refuse_changed(source, base, told["fingerprint"])
    model = load_causal_lm(base, getattr(torch, told["dtype"]))
    add_new_tokens(model, TextTokenizer.load(base), tuple(told["new_tokens"]), told["seed"])
    return put_together(model, Path(source.location), told["quantization"])


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

    A new row starts at the mean of all rows plus a little seeded noise, so that the slots differ from the start. So
    does a row between the model's and theirs: a tokenizer may know more tokens than its model (GGUF: an ``<unk>``).
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
    rows = [*ids, *sorted(set(range(known, max(ids))) - set(ids))]
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        _start_at_mean(layer.weight, rows, seed)
    return ids


@torch.no_grad()
def _start_at_mean(weight: Tensor, ids: list[int], seed: int) -> None:
    old = torch.ones(weight.shape[0], dtype=torch.bool)
    old[ids] = False
    noise = torch.randn(len(ids), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    spread = weight[old].float().std(dim=0) * 0.1
    weight[ids] = (weight[old].float().mean(dim=0) + noise * spread).to(weight.dtype)
