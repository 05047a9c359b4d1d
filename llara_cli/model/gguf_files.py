"""GGUF files: split ones, and what transformers does not read of any of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.errors import UserError
from llara_cli.data.text_files import first_of

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_OF_THE_FILE = {"split.no", "split.count", "split.tensors.count", "general.architecture"}
"""Metadata that the writer adds itself, or that only parts of a split file have."""
_ROPE_FACTORS = "rope_freqs.weight"
"""The divisor of each rotary frequency: llama.cpp's form of Llama 3's RoPE scaling."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Settings that Llama 3.1, 3.2 and 3.3 have in common; ``factor`` is the largest of the file's divisors."""
_PLAIN_SCALING = (None, "", "none")


def without_part(name: str) -> str:
    """``model-00001-of-00003.gguf`` -> ``model.gguf``; any other name stays."""
    match = _PART.fullmatch(name)
    return f"{match['stem']}.gguf" if match else name


def parts(file: Path) -> list[Path]:
    """All parts of a split GGUF (``NAME-00001-of-00003.gguf``), the first one first; an unsplit file itself.

    Raises ``UserError`` naming those that are missing.
    """
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = match["count"]
    every = [file.with_name(f"{match['stem']}-{number:05d}-of-{count}.gguf") for number in range(1, int(count) + 1)]
    if missing := [part.name for part in every if not part.is_file()]:
        raise UserError(f"{file}: parts of this split GGUF are missing: {first_of(missing, 3)}")
    return every


@lru_cache(maxsize=4)
def _read(files: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata of the first part, but for the tokenizer's lists; and tensors by name, of all parts, memory-mapped."""
    import gguf  # an extra

    readers = [gguf.GGUFReader(file) for file in files]
    fields = readers[0].fields.values()
    metadata = {field.name: field.contents() for field in fields if not field.name.startswith("tokenizer.")}
    return metadata, {tensor.name: tensor for reader in readers for tensor in reader.tensors}


def complete_config(config: Any, files: list[Path]) -> None:
    """Add to a configuration what transformers leaves out when it reads it from these files.

    Raises:
        ImportError: ``gguf`` is not installed.
        UserError: a part of a split file under another name, or an unknown RoPE scaling.
    """
    metadata, tensors = _read(tuple(files))
    count = int(metadata.get("split.count", 1))
    if count > 1 and len(files) == 1:
        raise UserError(
            f"{files[0]}: one of {count} parts of a split GGUF: keep the names that llama.cpp gave them "
            f"(NAME-00001-of-{count:05d}.gguf)"
        )
    if len(files) > 1 and "output.weight" in tensors:
        config.tie_word_embeddings = False  # transformers looks for it in the first part only
    _complete_from_metadata(config, metadata, files[0])
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") == "default":
        _refuse_scaling(metadata, files[0])
        if _ROPE_FACTORS in tensors:
            _set_factors(config, np.asarray(tensors[_ROPE_FACTORS].data, np.float64), files[0])


def _complete_from_metadata(config: Any, metadata: dict[str, Any], file: Path) -> None:
    """Copy metadata that changes what a model computes and that transformers ignores for some architectures.

    Raises ``UserError`` if it differs from the configuration, which has no known place for it.
    """
    prefix = metadata.get("general.architecture")
    values = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope and (theta := values.get("rope.freq_base")) is not None:
        config.rope_parameters = rope = {**rope, "rope_theta": float(theta)}
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if name in values and hasattr(config, name):
            setattr(config, name, float(values[name]))
    if isinstance(rope, dict) and "rope_theta" in rope and (dims := values.get("rope.dimension_count")) is not None:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        if int(dims) != int(width * share):
            raise _unread(file, f"rotary positions in {dims} of {width} numbers of a head (rope.dimension_count)")
    window = int(values.get("attention.sliding_window") or 0)
    if window and window != getattr(config, "sliding_window", None) and window < (config.max_position_embeddings or 0):
        raise _unread(file, f"a sliding window of {window} tokens (attention.sliding_window)")
    if float(values.get("rope.scale_linear", 1.0)) != 1.0:
        raise _unread(file, f"a RoPE scaling of {values['rope.scale_linear']:g} (rope.scale_linear)")


def _unread(file: Path, what: str) -> UserError:
    return UserError(
        f"{file}: its metadata say {what}, which transformers does not read from a GGUF of this architecture: "
        "name the model that it was made from, as safetensors"
    )


def _refuse_scaling(metadata: dict[str, Any], file: Path) -> None:
    """Raise ``UserError`` for a RoPE scaling in the metadata, which transformers does not read."""
    prefix = f"{metadata.get('general.architecture')}.rope.scaling"
    kind, factor = metadata.get(f"{prefix}.type"), float(metadata.get(f"{prefix}.factor", 1.0))
    if kind not in _PLAIN_SCALING and factor != 1.0:
        raise UserError(
            f"{file}: its RoPE scaling ({kind}, factor {factor:g}) cannot be read from a GGUF: "
            "name the model that it was made from, as safetensors"
        )


def _set_factors(config: Any, factors: NDArray[np.float64], file: Path) -> None:
    """Set Llama 3's RoPE scaling in the configuration. Raises ``UserError`` for factors of another kind."""
    if np.allclose(factors, 1.0):
        return
    rope = config.rope_parameters
    factor = float(factors.max())
    frequencies = float(rope["rope_theta"]) ** -(np.arange(len(factors)) / len(factors))
    if not np.allclose(_llama3_factors(frequencies, factor), factors, rtol=1e-3):
        raise UserError(
            f"{file}: its RoPE scaling ({_ROPE_FACTORS}) is of a kind that cannot be read from a GGUF: "
            "name the model that it was made from, as safetensors"
        )
    config.rope_parameters = {**rope, "rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_factors(frequencies: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Llama 3's divisor of each frequency: ``factor`` for long waves, 1 for short ones, a mix in between."""
    low, high, positions = _LLAMA3.values()
    turns = positions * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def unplaced_tensors(model: Any, files: list[Path]) -> set[str]:
    """Tensors of the files that transformers silently ignores, as its model has no place for them.

    Empty for architectures whose tensors do not correspond one to one to the model's weights (experts).
    """
    import gguf

    metadata, tensors = _read(tuple(files))
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(architectures[metadata["general.architecture"]], model.config.num_hidden_layers)
    placed = {known.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
    if None in placed or any("_exps" in name for name in tensors):
        return set()
    # tied: llama.cpp may write the projection all the same
    return tensors.keys() - placed - {_ROPE_FACTORS, "output.weight"}


@contextmanager
def as_one_file(files: list[Path]) -> Iterator[Path]:
    """The parts merged into one GGUF in a temporary folder; a single file is yielded unchanged."""
    if len(files) == 1:
        yield files[0]
        return
    with TemporaryDirectory(prefix="llara-gguf-") as folder:
        path = Path(folder) / without_part(files[0].name)
        _merge(files, path)
        yield path


def _merge(files: list[Path], path: Path) -> None:
    """Write the metadata of the first part and the tensors of all, byte for byte."""
    import gguf

    readers = [gguf.GGUFReader(file) for file in files]
    fields = readers[0].fields
    writer = gguf.GGUFWriter(path, fields["general.architecture"].contents(), endianess=readers[0].endianess)
    for field in fields.values():
        if field.name not in _OF_THE_FILE and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=readers[0].endianess)
    writer.close()
