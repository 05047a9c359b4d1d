"""Names that are derived where none is given: one command after the other works, as README has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Llara

from llara_cli.training.base_model import default_model_name
from llara_cli.training.config import ExecutionConfig, FinetuneConfig, OptimizerConfig, PretrainConfig

STEPS = ("--max-steps", 1, "--batch-size", 2)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (PretrainConfig(), "tiny-paper-wiki"),
        (PretrainConfig(backend="qlora"), "tiny-paper-wiki-qlora"),
        (PretrainConfig(backend="lora", recipe="released"), "tiny-released-wiki-lora"),
        (PretrainConfig(optimizer=OptimizerConfig(name="adamw-8bit")), "tiny-paper-wiki-adamw-8bit"),
        (
            PretrainConfig(optimizer=OptimizerConfig(name="adamw-8bit", weights="bf16")),
            "tiny-paper-wiki-adamw-8bit-bf16",
        ),
        (PretrainConfig(execution=ExecutionConfig(gradient_checkpointing=True)), "tiny-paper-wiki"),
        (FinetuneConfig(), "tiny-paper-wiki-ft"),
        (FinetuneConfig(backend="full"), "tiny-paper-wiki-full-ft"),
        (FinetuneConfig(optimizer=OptimizerConfig(name="paged-adamw")), "tiny-paper-wiki-paged-adamw-ft"),
    ],
)
def test_a_derived_name_tells_how_it_was_trained(settings: PretrainConfig | FinetuneConfig, name: str) -> None:
    suffix = "-ft" if isinstance(settings, FinetuneConfig) else ""
    assert default_model_name("tiny", settings.recipe or "paper", ["data/wiki.jsonl"], settings, suffix) == name


def test_one_command_after_the_other(llara: Llara, corpus: Path, train: Path, beir: Path, tiny_model: Path) -> None:
    base = ("--model", tiny_model, *STEPS)
    for command, name in (
        (("pretrain", corpus, *base), "tiny-paper-wiki"),
        (("pretrain", corpus, *base, "--backend", "lora"), "tiny-paper-wiki-lora"),
        (("finetune", train, *base), "tiny-paper-train-ft"),
        (("finetune", train, *base, "--rounds", 2, "--corpus", beir), "tiny-paper-train-ft-rounds2"),
        (("encode", beir), "tiny-paper-train-ft-rounds2-small"),
        (("index",), "tiny-paper-train-ft-rounds2-small-exact"),
        (("index", "--backend", "faiss"), "tiny-paper-train-ft-rounds2-small-faiss"),
        (("index", "--backend", "faiss", "--spec", "IVF1,Flat"), "tiny-paper-train-ft-rounds2-small-faiss-IVF1-Flat"),
    ):
        done = llara(*command, "--json")
        assert done.code == 0, done.err
        assert done.json["name"] == name
