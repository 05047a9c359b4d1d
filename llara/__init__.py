"""The Python API of llara: turn a language model into a dense retriever, encode, index, search and evaluate.

>>> import llara
>>> model = llara.Model.load("tiny-model")                 # a hub id, a folder or a .gguf file
>>> vectors = model.encode(["Bees dance.", "Cats sleep."])   # float32 (n, dim), L2-normalized
>>> workspace = llara.Workspace("workspace")
>>> index = workspace.index(workspace.encode("corpus.jsonl", model=model))
>>> [hit.rank for hit in index.search("why do bees dance", top_k=3)]
[1, 2, 3]

Importing it loads no heavy library; torch and transformers are loaded when a model is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llara_cli import __version__
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.reporter import LlaraWarning, Progress

if TYPE_CHECKING:
    from llara.artifacts import Embeddings, Hit, Index, TrainedModel
    from llara.model import Model
    from llara.scores import evaluate
    from llara.workspace import Workspace
    from llara_cli.core.config import LoraConfig
    from llara_cli.evaluation.config import CompareConfig, EvaluateConfig
    from llara_cli.retrieval.config import EncodeConfig, IndexConfig, MineConfig, SearchConfig
    from llara_cli.training.config import ExecutionConfig, FinetuneConfig, OptimizerConfig, PretrainConfig

_HOMES = {
    "Model": "llara.model",
    "Workspace": "llara.workspace",
    "TrainedModel": "llara.artifacts", "Embeddings": "llara.artifacts", "Index": "llara.artifacts",
    "Hit": "llara.artifacts",
    "evaluate": "llara.scores",
    "PretrainConfig": "llara_cli.training.config", "FinetuneConfig": "llara_cli.training.config",
    "OptimizerConfig": "llara_cli.training.config", "ExecutionConfig": "llara_cli.training.config",
    "LoraConfig": "llara_cli.core.config",
    "EncodeConfig": "llara_cli.retrieval.config", "IndexConfig": "llara_cli.retrieval.config",
    "MineConfig": "llara_cli.retrieval.config", "SearchConfig": "llara_cli.retrieval.config",
    "EvaluateConfig": "llara_cli.evaluation.config", "CompareConfig": "llara_cli.evaluation.config",
}  # fmt: skip
"""Public name -> the module that it is imported from when it is first used."""

__all__ = [
    "CompareConfig",
    "Embeddings",
    "EncodeConfig",
    "EvaluateConfig",
    "ExecutionConfig",
    "FinetuneConfig",
    "Hit",
    "Index",
    "IndexConfig",
    "LlaraError",
    "LlaraWarning",
    "LoraConfig",
    "MineConfig",
    "Model",
    "OptimizerConfig",
    "PretrainConfig",
    "Progress",
    "SearchConfig",
    "TrainedModel",
    "UserError",
    "Workspace",
    "__version__",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llara' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
