"""Encoder backend ``sentence-transformers``: any model of that library, with its own pooling, prompts and length."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from llara_backends.sentence_transformers_tokens import Counts, count, overhead, shortened
from llara_cli.core.config import DEFAULT_LENGTH
from llara_cli.core.errors import UserError, is_out_of_memory
from llara_cli.core.protocols import Advance, Role, Vectors
from llara_cli.model.architecture import rope_switch
from llara_cli.model.backends import Encoded, EncoderBackend, EncoderFacts, EncoderOptions
from llara_cli.model.batching import Batching, forward_tokens
from llara_cli.model.checkpoint import (
    INDEX,
    WEIGHTS,
    Header,
    is_quantized,
    listed,
    read_header,
    refuse_incomplete,
    refuse_quantized,
)
from llara_cli.model.decoder import choose_device, choose_dtype
from llara_cli.model.encoder import BATCH_TOKENS, choose_length
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.model_info import token_numbers
from llara_cli.model.source import MODULES, PEFT_CONFIG, ModelSource
from llara_cli.model.tokenizer import TextTokenizer, first_line

PROMPTS: dict[Role, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}
"""The names of a role's prompt in the library."""
_UNLIMITED = 1_000_000
"""A tokenizer's ``model_max_length`` above this means unknown."""


class SentenceTransformersEncoder(EncoderBackend):
    """The library runs the model; length-sorted batches by tokens, counts and checks are llara's."""

    name = "sentence-transformers"

    def __init__(self, model: Any, limits: dict[Role, int | None], batch_tokens: int | None = None) -> None:
        """Raises ``UserError`` if a length is too short for the prompt."""
        self.model = model
        self.limits = limits
        budget = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
        switch = rope_switch(model.config.get_text_config()) if model.config is not None else None
        parameters = sum(weight.numel() for weight in model.parameters())
        cost = forward_tokens(model.device.type, parameters)
        self._batching = Batching("bucketed", budget, switch=switch, forward_tokens=cost)
        self.prompts: dict[Role, str] = {role: _prompt(model, names) for role, names in PROMPTS.items()}
        _read_control_tokens_as_text(model, self.prompts)
        for role, limit in limits.items():
            need = overhead(model.tokenizer, self.prompts[role])
            if limit is not None and limit <= need:
                raise UserError(
                    f"a length of {limit} tokens is too short: the prompt alone needs {need}, so >= {need + 1}"
                )

    @classmethod
    def facts(cls, source: ModelSource) -> EncoderFacts:
        """Parameters, and the width after pooling and later layers."""
        model = _load(source, torch.float32, None)
        hidden = getattr(model.config.get_text_config(), "hidden_size", 0) if model.config is not None else 0
        parameters = sum(weight.numel() for weight in model.parameters())
        return EncoderFacts(parameters, _dim(model, source), token_numbers=token_numbers(model, hidden) or None)

    @classmethod
    def choose_length(cls, source: ModelSource, length: int | None) -> int | None:
        """``length``, or the model's own, limited to its positions."""
        return _choose_length(_load(source, torch.float32, None), length)

    @classmethod
    def load(cls, source: ModelSource, options: EncoderOptions) -> SentenceTransformersEncoder:
        """Load every module.

        Raises ``UserError`` for a pickle checkpoint, a length that does not fit, and settings of another encoder.
        """
        if options.attention != "auto" or options.compile:
            raise UserError("`attention` and `compile` are for `encoder='torch'`: leave them out")
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, device)
        model = _load(source, dtype, device).to(dtype).eval()
        if source.file(MODULES) is None:
            options.note(f"{source.name} has no {MODULES}: sentence-transformers takes the mean of its hidden states")
        _dim(model, source)
        limits: dict[Role, int | None] = {
            "query": _choose_length(model, options.query_length),
            "passage": _choose_length(model, options.passage_length),
        }
        return cls(model, limits, options.batch_tokens)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], role: Role, progress: Advance | None = None) -> Encoded:
        """Vectors (texts, dim) in the order of ``texts``."""
        texts = shortened(self.model.tokenizer, self.prompts[role], texts, self.limits[role])
        counts = self._count(texts, role)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for rows in self._batching.forwards([max(1, length) for length in counts.lengths]):
            batch = [number for row in rows for number in row]
            vectors[batch] = self._encode([texts[number] for number in batch], role)
            if progress is not None:
                progress(len(batch))
        return Encoded(vectors, counts.tokens, counts.cut, counts.empty)

    def _count(self, texts: Sequence[str], role: Role) -> Counts:
        return count(self.model.tokenizer, self.prompts[role], texts, self.limits[role])

    def _encode(self, texts: list[str], role: Role) -> Vectors:
        """(texts, dim), normalized in fp32 whatever the model computes in."""
        if (limit := self.limits[role]) is not None:
            self.model.max_seq_length = limit
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        pooled = encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        normalized: Vectors = functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return normalized


def _load(source: ModelSource, dtype: torch.dtype, device: torch.device | None) -> Any:
    """Load the model by the library; without ``device`` its Transformer has shapes only, no weights."""
    weights: dict[str, Any] = {"use_safetensors": True, "dtype": dtype, "ignore_mismatched_sizes": True}
    try:
        # without weights, those of a hub model are not fetched
        headers = _headers(source) if device is not None or source.is_local else {}
        if renaming := {key: value for header in headers.values() for key, value in (header.renaming or {}).items()}:
            weights["key_mapping"] = renaming
        with quiet_transformers():
            model = SentenceTransformer(
                source.location,
                device=None if device is None else str(device),
                trust_remote_code=source.remote_code,
                local_files_only=source.is_local,
                model_kwargs=weights if device else weights | {"device_map": "meta"},
            )
            if device is not None:
                _refuse_incomplete(source, model, headers, weights)
                _refuse_unknown_tokens(source, model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source.path}: sentence-transformers cannot load it: {first_line(error)}") from error
    return model


def _headers(source: ModelSource) -> dict[str, Header]:
    """Folder -> names and shapes of the weights, of the modules that have weights.

    Raises ``UserError`` for what the library would not load, load wrongly, or load by pickle.
    """
    if source.gguf_file or source.is_adapter or source.base is not None:
        raise UserError(f"{source.path}: a GGUF file or an adapter alone runs with `encoder='torch'` only")
    folders = _folders(source)
    if not folders and source.saved_recipe is not None:
        raise UserError(f"{source.path} was trained with a recipe of llara: encode with `encoder='torch'`")
    found = {}
    for folder in dict.fromkeys(["", *folders] if source.is_local or not folders else folders):
        if source.file(f"{folder}/{PEFT_CONFIG}" if folder else PEFT_CONFIG) is not None:
            raise UserError(
                f"{source.path}: its Transformer is an adapter of peft, whose weights are not checked here: merge it "
                "into its base and save the whole model"
            )
        _refuse_quantized(source, folder)
        if (header := _header(source, folder)) is not None:
            found[folder] = header
    return found


def _folders(source: ModelSource) -> list[str]:
    """The folders of a model's modules, including those of its routes; none if it was not made by the library."""
    modules, routes = source.file(MODULES), source.file("router_config.json")
    try:
        named = json.loads(modules.read_text(encoding="utf-8")) if modules else []
        types = json.loads(routes.read_text(encoding="utf-8")).get("types", {}) if routes else {}
        folders = [*(str(module["path"]) for module in named), *map(str, types)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source.path}: {MODULES} or router_config.json is damaged: {first_line(error)}") from error
    if outside := [folder for folder in folders if Path(folder).is_absolute() or ".." in Path(folder).parts]:
        raise UserError(f"{source.path}: its modules are outside its folder: {listed(outside)}")
    return folders


def _header(source: ModelSource, folder: str) -> Header | None:
    """Names and shapes of a module's weights; None if it has none. Raises ``UserError`` for a pickle."""
    prefix = f"{folder}/" if folder else ""
    if any(source.file(prefix + name) is not None for name in (WEIGHTS, INDEX)):
        return read_header(source, folder)
    pickle = f"{prefix}pytorch_model.bin"
    if source.is_local and source.file(pickle) is not None:  # on the hub, looking would fetch it
        raise UserError(f"{source.path}: {pickle} is a pickle, which could run code: save as safetensors")
    return None


def _config(source: ModelSource, folder: str) -> dict[str, Any]:
    """``config.json`` of a module; empty if there is none."""
    path = source.file(f"{folder}/config.json" if folder else "config.json")
    found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return found if isinstance(found, dict) else {}


def _refuse_quantized(source: ModelSource, folder: str) -> None:
    """Raise ``UserError`` for quantized weights: they cannot be cast to the dtype asked for."""
    config = _config(source, folder)
    refuse_quantized(source, config)
    if is_quantized(config):
        raise UserError(f"{source.path}: weights quantized with bitsandbytes run with `encoder='torch'` only")


def _refuse_incomplete(source: ModelSource, model: Any, headers: Iterable[str], weights: dict[str, Any]) -> None:
    """Raise ``UserError`` if weights of a Transformer are missing in its files, which the library does not report."""
    bodies = [module.model for module in model.modules() if isinstance(module, Transformer)]
    kinds = {body.config.model_type: type(body) for body in bodies if isinstance(body, PreTrainedModel)}
    options: dict[str, Any] = {"trust_remote_code": source.remote_code, "local_files_only": source.is_local}
    for folder in headers:
        kind = kinds.get(_config(source, folder).get("model_type", ""))
        if kind is None:  # not of a Transformer
            continue
        place = options | ({"subfolder": folder} if folder else {})
        config = AutoConfig.from_pretrained(source.location, **place)
        body, loaded = kind.from_pretrained(
            source.location, config=config, device_map="meta", output_loading_info=True, **place, **weights
        )
        refuse_incomplete(source, body, loaded)


def _refuse_unknown_tokens(source: ModelSource, model: Any) -> None:
    """Raise ``UserError`` if a text may have ids that a Transformer's embedding does not have."""
    bodies = [module.model for module in model.modules() if isinstance(module, Transformer)]
    if isinstance(model.tokenizer, PreTrainedTokenizerBase):
        for body in bodies:
            rows = len(body.get_input_embeddings().weight)
            TextTokenizer(model.tokenizer).check_texts(rows, source.path)


def _prompt(model: Any, names: Sequence[str]) -> str:
    """The prompt that the library puts before a role's texts."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return str(model.prompts.get(name) or "")


def _dim(model: Any, source: ModelSource) -> int:
    width = model.get_embedding_dimension()
    if width is None:
        raise UserError(f"{source.path}: its modules do not tell the width of its vectors")
    return int(width)


def _choose_length(model: Any, length: int | None) -> int | None:
    own, positions = model.max_seq_length, _positions(model)
    if own is None or math.isinf(own):  # static embeddings and bags of words read everything
        if length is not None:
            raise UserError(f"the model reads whole texts: a length of {length} tokens cannot be set")
        return None
    if length is None:
        return min(DEFAULT_LENGTH if own > _UNLIMITED else int(own), positions or int(own))
    return choose_length(length, positions)


def _positions(model: Any) -> int | None:
    """The model's number of positions; RoBERTa-like models count from behind the padding's row."""
    config = model.config
    found = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if not found or found < 0:
        return None
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return int(found) - padding - 1
    return int(found)


def _read_control_tokens_as_text(model: Any, prompts: dict[Role, str]) -> None:
    """Tokenize special tokens inside a text as plain text, unless the model's own prompts use them."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        used = any(token in prompt for token in tokenizer.all_special_tokens for prompt in prompts.values())
        tokenizer.split_special_tokens = not used
