"""The tokenizer of a GGUF, corrected for transformers before 5.18.

5.17 takes the start token for the end token, invents special tokens that the file lacks, never adds a start token, and
loses a leading space in decoding; with some vocabularies it splits or merges texts differently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llara_cli.core.errors import UserError

READS_RIGHT = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 18)
"""Whether this version of transformers reads a GGUF's tokenizer correctly."""
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_GPT_2, _QWEN = ("default", "gpt-2", "smollm"), ("qwen2",)
_SPLITS = {"llama": _GPT_2, "gpt2": _GPT_2, "qwen2": _QWEN, "qwen2moe": _QWEN, "qwen3": _QWEN, "qwen3moe": _QWEN}
"""Architecture -> ways to split texts before byte pairs are merged (``tokenizer.ggml.pre``) that 5.17 gets right."""


def load_gguf_tokenizer(folder: str, name: str, **options: Any) -> Any:
    """The tokenizer of ``folder/name``. Raises ``UserError`` if transformers would get other ids from a text."""
    if READS_RIGHT:
        return AutoTokenizer.from_pretrained(folder, gguf_file=name, **options)
    metadata = _metadata(Path(folder, name))
    if (kind := _misread(metadata)) is not None:
        raise UserError(
            f"{Path(folder, name)}: transformers {transformers.__version__} does not read its tokenizer ({kind}) right:"
            f" pip install 'transformers>=5.18', or name the model that it was made from"
        )
    return _mended(AutoTokenizer.from_pretrained(folder, gguf_file=name, **options), metadata)


def _metadata(file: Path) -> dict[str, Any]:
    """The file's metadata of its tokenizer, by key without ``tokenizer.ggml.``, and its ``architecture``."""
    import gguf  # an extra

    fields = gguf.GGUFReader(file).fields
    wanted = ("model", "pre", "tokens", "add_bos_token", *(f"{name}_token_id" for name in _SPECIAL.values()))
    metadata = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in wanted if f"tokenizer.ggml.{key}" in fields}
    return metadata | {"architecture": fields["general.architecture"].contents()}


def _misread(metadata: dict[str, Any]) -> str | None:
    """The kind of vocabulary if transformers 5.17 gets other ids from a text with it, or fails; else None."""
    architecture, model, split = metadata["architecture"], metadata.get("model"), metadata.get("pre", "default")
    if "bos_token_id" not in metadata:
        return "without a start token"
    if model == "gpt2" and split in _SPLITS.get(architecture, ()):
        return None
    return None if model == architecture == "llama" else f"{split if model == 'gpt2' else model} of {architecture}"


def _mended(tokenizer: Any, metadata: dict[str, Any]) -> Any:
    """The tokenizer with exactly the special tokens that its file names."""
    tokens = metadata["tokens"]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(tokens)]
    backend: Any = Tokenizer.from_str(json.dumps(state))
    if metadata["model"] == "gpt2":
        backend.decoder = decoders.ByteLevel()
    ids = {name: metadata.get(f"{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in ids.items() if number is not None}
    start = metadata.get("add_bos_token", metadata["model"] == "llama")
    return PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=start, **special)
