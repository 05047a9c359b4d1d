"""Loads decoders: checkpoints, GGUF files, adapters on a base; and adds rows for new tokens."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from llara_cli.core.errors import LlaraError, UserError, is_out_of_memory
from llara_cli.data.text_files import one_line
from llara_cli.model import gguf_files
from llara_cli.model.adapter_checkpoint import adapter_folder, base_of, embedding_rows, put_together, refuse_changed
from llara_cli.model.checkpoint import (
    is_quantized,
    missing_library,
    read_header,
    refuse_codes,
    refuse_incomplete,
    refuse_quantized,
)
from llara_cli.model.source import ADAPTER, ModelSource, refuse_adapter_beside
from llara_cli.model.tokenizer import TextTokenizer


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


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn any error that transformers raises for an odd checkpoint into one line that names the checkpoint.

    Out-of-memory errors, which are not the checkpoint's fault, are not changed.
    """
    try:
        with quiet_transformers():
            yield
    except LlaraError:
        raise
    except ImportError as error:
        raise missing_library(source, error) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(_cannot_load(source, error)) from error


def load_config(source: ModelSource) -> Any:
    """The model's configuration; for an adapter that of its base.

    Raises ``UserError`` if there is none, where it is not a causal language model's, and for weights quantized in a
    way that cannot be read here.
    """
    if source.base is not None:
        return load_config(source.base)
    options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with _explained(source):
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=source.remote_code, **options)
        if source.gguf_file:
            gguf_files.complete_config(config, source.gguf_parts)
    refuse_quantized(source, config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise UserError(
            f"{source.path}: {config.model_type!r} is not a causal language model; "
            "if it makes embeddings, encode with `encoder='sentence-transformers'`"
        )
    return config


def _cannot_load(source: ModelSource, error: Exception) -> str:
    if "use_safetensors" in str(error):
        return f"{source.path}: no weights as safetensors there: ask its authors for them, or convert them"
    if source.is_local or source.file("config.json") is not None:
        return f"{source.path}: cannot load the model: {one_line(error)}"
    return (
        f"no model {source.location!r} in the workspace, on this disk or (as far as it can be reached) on the hub:"
        f" {one_line(error)}"
    )


def max_positions(config: Any) -> int | None:
    """Tokens that a configuration has positions for; None if it has no limit."""
    found = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 0)
    return found if found > 0 else None


def load_causal_lm(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its vocabulary projection, on the CPU, in ``dtype``; safetensors or GGUF only.

    An adapter is merged into its base. Quantized weights (GGUF, bitsandbytes) are dequantized, and moved into a module
    built from the plain configuration, so that it can be saved like any other.

    Raises:
        UserError: the files are missing, damaged, no causal language model, or do not hold all of its weights. The
            vocabulary projection alone may be missing: see ``lacks_projection``.
    """
    if source.is_adapter:
        return _from_adapter(source).to(dtype)
    if source.base is not None:
        return _from_peft(source, source.base, dtype)
    config = load_config(source)
    with _explained(source):
        model = _from_gguf(source, config, dtype) if source.gguf_file else _from_checkpoint(source, config, dtype)
    model.config.use_cache = False
    return model


def model_of_shapes(source: ModelSource) -> PreTrainedModel:
    """The model without weights, on the ``meta`` device.

    Raises ``UserError`` if the configuration describes no causal language model that could be built.
    """
    config = load_config(source)
    with _explained(source), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=source.remote_code)
    if source.base is not None:
        _make_room(model, adapter_folder(source))
    return model


def has_projection(source: ModelSource) -> bool:
    """Whether a local checkpoint has its vocabulary projection; True where its headers do not show it.

    Raises ``UserError`` for a checkpoint that is not whole, as ``load_causal_lm`` does, without reading a weight.
    """
    if source.base is not None:
        return has_projection(source.base)
    if source.is_adapter:
        return has_projection(base_of(source)[0])
    if source.gguf_file or not source.is_local:
        return True
    config = load_config(source)
    if is_quantized(config):
        return True  # its layers cannot be created on the meta device
    with _explained(source):
        model = _from_checkpoint(source, config, torch.float32, device_map="meta")
    return not lacks_projection(model)


def lacks_projection(model: PreTrainedModel) -> bool:
    """Whether the checkpoint had no vocabulary projection: the model's is random, and is not saved."""
    return bool(_projection_names(model) & set(getattr(model, "_keys_to_ignore_on_save", None) or ()))


def _projection_names(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    names = (name for name, module in model.named_modules() if module is head)
    return {f"{name}.{own}" for name in names for own, _ in head.named_parameters()}


def _from_checkpoint(source: ModelSource, config: Any, dtype: torch.dtype, **more: Any) -> PreTrainedModel:
    refuse_adapter_beside(source)
    header = read_header(source)
    if header is not None and not is_quantized(config):
        refuse_codes(source, header)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": source.remote_code, "use_safetensors": True}
    options |= more
    if header is not None and header.renaming:
        options["key_mapping"] = header.renaming
    model: PreTrainedModel
    model, loaded = AutoModelForCausalLM.from_pretrained(
        source.location, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing = refuse_incomplete(source, model, loaded)
    if is_quantized(config):
        model = _as_plain(model.dequantize(), dtype)
    if "key_mapping" in options:
        model._weight_conversions = None  # or saving would write the wrapper's names again
    if missing:
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *missing}
    return model


def _from_adapter(source: ModelSource) -> PreTrainedModel:
    base, record = base_of(source)
    if not base.is_local:
        load_config(base)  # puts a hub model into the cache, where its fingerprint is read
    refuse_changed(source, base, record["fingerprint"])
    model = load_causal_lm(base, getattr(torch, record["dtype"]))
    add_new_tokens(model, TextTokenizer.load(base), tuple(record["new_tokens"]), record["seed"])
    return put_together(model, Path(source.location) / ADAPTER, record["quantization"])


def _from_peft(source: ModelSource, base: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    model = load_causal_lm(base, torch.float32)
    folder = adapter_folder(source)
    _make_room(model, folder)
    return put_together(model, folder, None).to(dtype)


def _make_room(model: PreTrainedModel, adapter: Path) -> None:
    """Resize a base's embeddings to those saved with an adapter that was trained with new tokens."""
    rows = embedding_rows(model, adapter)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _from_gguf(source: ModelSource, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    files = source.gguf_parts
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    # none of transformers' switches turns its progress bar off
    with gguf_files.as_one_file(files) as file, redirect_stderr(io.StringIO()):
        loaded, found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32, **options
        )
    found["unexpected_keys"] = {*found["unexpected_keys"], *gguf_files.unplaced_tensors(loaded, files)}
    if refuse_incomplete(source, loaded, found):
        raise UserError(f"{source.path}: a GGUF without the vocabulary projection (output.weight)")
    return _as_plain(loaded, dtype)


def _as_plain(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights in a module built from the plain configuration, which can be saved like any other."""
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    for name, buffer in loaded.named_buffers():
        plain.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer, persistent=False)
    plain.generation_config = loaded.generation_config
    plain.eval()
    return plain.to(dtype)


def add_new_tokens(model: PreTrainedModel, tokenizer: TextTokenizer, tokens: tuple[str, ...], seed: int) -> list[int]:
    """Add ``tokens`` to tokenizer and model as special tokens; return the ids whose embeddings are untrained.

    A new row starts at the mean of all rows plus a little seeded noise, so that the slots differ from the start. So
    does a row between the model's and theirs: a tokenizer may have more tokens than its model (GGUF: an ``<unk>``).
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
