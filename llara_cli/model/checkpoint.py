"""Checks a checkpoint's files: quantization, and whether every weight of the model is there.

Nothing here reads a weight: names and shapes are in the files' headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import get_checkpoint_shard_files

from llara_cli.core.errors import UserError
from llara_cli.core.registry import install_hint
from llara_cli.data.text_files import first_of
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = 5
"""Tensors that an error names; the rest are counted."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LFS_POINTER = b"version https://git-lfs"
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""
_COMPILED = "_orig_mod."
_OTHER_HEADS = frozenset(
    ("lm_head", "embed_out", "score", "classifier", "cls", "qa_outputs", "v_head", "value_head", "pooler")
)
"""Heads of other tasks: a checkpoint may hold them beside the body, which does not need them."""
_OLD_BUFFERS = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|attn\.bias)$")
"""Constants that older versions of transformers saved."""
BITSANDBYTES = "bitsandbytes"
_EIGHT_BITS = {"I8", "U8", "F8_E4M3", "F8_E5M2"}


def refuse_quantized(source: ModelSource, config: Any) -> None:
    """Raise ``UserError`` for weights quantized in a way that cannot be trained from, nor saved again.

    ``config``: the configuration, as transformers' object or as the JSON object of ``config.json``.
    """
    method = _quantization_method(config)
    if source.gguf_file or method in (None, BITSANDBYTES):
        return
    raise UserError(
        f"{source.path}: its weights are quantized with {method}, which cannot be read here: "
        "name the model that it was quantized from (bf16, fp16 and fp32 weights, GGUF files and bitsandbytes are read)"
    )


def is_quantized(config: Any) -> bool:
    """Whether weights are quantized, by the configuration: transformers' object or a JSON object."""
    return _quantization_method(config) is not None


def _quantization_method(config: Any) -> str | None:
    """The method that quantized a checkpoint; None: it is not quantized."""
    fields = config if isinstance(config, Mapping) else vars(config)
    found = fields.get("quantization_config")
    if not found:
        return None
    settings = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
    method = settings.get("quant_method")
    if method is None:  # written by old versions of bitsandbytes
        return BITSANDBYTES if settings.get("load_in_4bit") or settings.get("load_in_8bit") else "an unknown method"
    return str(getattr(method, "value", method))


@dataclass(frozen=True)
class Header:
    """The weights in a checkpoint's files: name -> dtype, as safetensors writes it (``F32``, ``BF16``, ``I8``)."""

    dtypes: Mapping[str, str]

    @property
    def names(self) -> Set[str]:
        """Names of the weights."""
        return self.dtypes.keys()

    @property
    def renaming(self) -> dict[str, str] | None:
        """Patterns and replacements (transformers' ``key_mapping``) that undo a wrapper; None: nothing to undo."""
        patterns = {}
        if self.names and all(_WRAPPERS.match(name) for name in self.names):
            patterns[_WRAPPERS.pattern] = ""
        if any(_COMPILED in _WRAPPERS.sub("", name) for name in self.names):  # layers that were compiled one by one
            patterns[re.escape(_COMPILED)] = ""
        return patterns or None


def refuse_codes(source: ModelSource, header: Header) -> None:
    """Raise ``UserError`` for 8-bit weights whose configuration does not say how they are quantized."""
    if codes := [name for name, dtype in header.dtypes.items() if dtype in _EIGHT_BITS]:
        kinds = ", ".join(sorted({header.dtypes[name] for name in codes}))
        raise UserError(
            f"{source.path}: {len(codes)} tensors are quantized ({kinds}), and its configuration does not say how: "
            f"{listed(codes)}"
        )


def read_header(source: ModelSource, folder: str = "") -> Header | None:
    """The header of the weights in ``folder`` of a model; None if the hub has no safetensors of it.

    Raises ``UserError`` that names the file where one is missing, cut short, no safetensors file, or a pickle.
    """
    files = _weight_files(source, folder)
    return (
        None if files is None else Header({name: dtype for file in files for name, (dtype, _) in tensors(file).items()})
    )


def _weight_files(source: ModelSource, folder: str) -> list[Path] | None:
    prefix = f"{folder}/" if folder else ""
    whole = source.file(prefix + WEIGHTS)
    if whole is not None:
        return [whole]
    index = source.file(prefix + INDEX)
    if index is not None:
        return _shards(source, index, folder)
    if not source.is_local:
        return None
    place = Path(source.location) / folder
    pickles = sorted(file.name for pattern in _PICKLES for file in place.glob(pattern))
    if pickles:
        raise UserError(
            f"{place / pickles[0]} is a pickle, which could run code when it is read: "
            f"save the model as safetensors (transformers: model.save_pretrained(FOLDER))"
        )
    raise UserError(f"{place}: no weights in it: {WEIGHTS} (or {INDEX}) is missing")


def _shards(source: ModelSource, index: Path, folder: str) -> list[Path]:
    try:
        names = sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: {why_unreadable(index, error)}") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index}: names files outside its folder: {listed(outside)}")
    if not source.is_local:
        paths, _ = get_checkpoint_shard_files(source.location, str(index), subfolder=folder)
        return [Path(path) for path in paths]
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{source.path}: {listed(missing)} of the {len(names)} files in {index.name} missing: copy or download them"
        )
    return [index.parent / name for name in names]


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of the tensors in a safetensors file, by its header.

    Raises ``UserError`` that says what is wrong with the file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a dict
            return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: {why_unreadable(file, error)}") from error


def why_unreadable(file: Path, error: Exception) -> str:
    """The reason, for an error message, that a file cannot be read."""
    with file.open("rb") as opened:
        start = opened.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        return "a git-lfs pointer, not the file itself: run git lfs pull, or download it"
    return f"damaged or cut short ({first_line(error)}): copy or download it again"


def listed(names: Iterable[str]) -> str:
    """``a, b, c, d, e and 7 more``."""
    return first_of(sorted(names), NAMED)


def refuse_incomplete(source: ModelSource, model: PreTrainedModel, loaded: Mapping[str, Any]) -> frozenset[str]:
    """Compare the weights in a checkpoint's files with those of the model.

    Args:
        model: a body, or a body with its vocabulary projection.
        loaded: transformers' report of the loading (``output_loading_info``).

    Returns:
        Names of the vocabulary projection's weights if the files have none of them: the model can only embed then.

    Raises:
        UserError: a weight is missing, of another shape, or has no place in the model; the message names them.
    """
    missing = {name for name in loaded["missing_keys"] if _first_part(model, name) != "pooler"}  # BERT's, used nowhere
    unexpected = set(loaded["unexpected_keys"])
    shapes = {str(name): (tuple(file), tuple(here)) for name, file, here in loaded["mismatched_keys"]}
    head = {name for name in missing if not _in_body(model, name)}
    whole = {name for name in _outside_body(model) if not _OLD_BUFFERS.search(name)}
    if head < whole - set(_tied(model)):  # a part of the projection is there, another is not
        head = set()
    faults = [
        _counted("missing", missing - head),
        _counted("unexpected", {name for name in unexpected if not _is_unused(model, name)}),
        _counted("of another shape", [f"{name} {file} instead of {here}" for name, (file, here) in shapes.items()]),
        *(str(message) for message in loaded.get("error_msgs") or ()),
    ]
    message = "; ".join(fault for fault in faults if fault)
    if message:
        raise UserError(f"{source.path}: its weights are not those that its configuration describes: {message}")
    return frozenset(head)


def _counted(what: str, names: Iterable[str]) -> str:
    every = list(names)
    return f"{len(every)} {what}: {listed(every)}" if every else ""


def _in_body(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to the body, which turns tokens into hidden states."""
    prefix = model.base_model_prefix
    return not hasattr(model, prefix) or name.startswith(f"{prefix}.")


def _outside_body(model: PreTrainedModel) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if not _in_body(model, name)}


def _tied(model: PreTrainedModel) -> Iterable[str]:
    tied: Iterable[str] = getattr(model, "all_tied_weights_keys", {})
    return tied


def _first_part(model: PreTrainedModel, name: str) -> str:
    """The outermost module that holds a weight, the body left out."""
    return name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]


def _is_unused(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight without a place in the model can be ignored: another task's head, or a constant."""
    first = _first_part(model, name)
    return _OLD_BUFFERS.search(name) is not None or (first in _OTHER_HEADS and not hasattr(model, first))


def missing_library(source: ModelSource, error: ImportError) -> UserError:
    """The error for a checkpoint that needs a library that is not installed."""
    if source.gguf_file:
        return UserError(f"{source.path}: reading GGUF files needs gguf: {install_hint('gguf')}")
    if BITSANDBYTES in str(error).lower():
        return UserError(f"{source.path}: its weights are quantized with bitsandbytes: {install_hint('qlora')}")
    return UserError(f"{source.path}: cannot load the model: {first_line(error)}")
