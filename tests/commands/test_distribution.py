"""Several processes share a batch: the same losses, the same texts, one artifact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from program import LAUNCHER, Llara, start, write_jsonl
from safetensors.torch import load_file
from tiny import TEXTS, make_model
from transformers import AutoModelForCausalLM

from llara_cli.model.loading import quiet_transformers

PROCESSES = 2
PRETRAIN = ("--name", "m", "--max-length", 120, "--max-steps", 6, "--json")
FINETUNE = ("--name", "m", "--max-steps", 4, "--json", "--lora-dropout", 0, "--negatives", 2, "--temperature", 0.05)


def launch(*arguments: object, workspace: Path, processes: int = PROCESSES) -> dict[str, Any]:
    """The result of ``llara`` in so many launched processes (gloo)."""
    process = start(*arguments, "-w", workspace, processes=processes, launched=True)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of several passages; the last batch of an epoch has one text."""
    documents = [{"text": " ".join(TEXTS[number:] + TEXTS[:number])} for number in range(5)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "wiki.jsonl", documents)


@pytest.mark.parametrize(
    "flags",
    [("--recipe", "paper"), ("--recipe", "released"), ("--recipe", "paper", "--batch-size", "1")],
    ids=["paper", "released", "fewer texts than processes"],
)
def test_two_processes_train_as_one_does(
    llara: Llara, tiny_model: Path, long_corpus: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    batch = () if "--batch-size" in flags else ("--batch-size", "7")
    command = ("pretrain", long_corpus, "--model", tiny_model, *PRETRAIN, *batch, *flags)
    alone = llara(*command, workspace=tmp_path / "one").json
    together = launch(*command, workspace=tmp_path / "two")
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert one.keys() == two.keys()
        assert (one["texts"], one["tokens"]) == (two["texts"], two["tokens"])
        for name in ("loss", "ebae", "ebar", "lm", "grad_norm", "learning_rate"):
            assert two[name] == (one[name] and pytest.approx(one[name], rel=1e-5)), name
    manifests = [json.loads((tmp_path / run / "models/m/manifest.json").read_text()) for run in ("one", "two")]
    assert [manifest["execution"]["processes"] for manifest in manifests] == [1, PROCESSES]
    assert manifests[0]["settings"] == manifests[1]["settings"]


def test_one_launched_process_trains_as_a_plain_run(
    llara: Llara, tiny_model: Path, long_corpus: Path, tmp_path: Path
) -> None:
    """Whoever launches it; in several forwards a batch, as the last one alone hands over the head's gradient."""
    flags = ("--batch-size", 7, "--micro-batch-tokens", 200)
    command = ("pretrain", long_corpus, "--model", tiny_model, *PRETRAIN, *flags)
    plain = llara(*command, workspace=tmp_path / "plain").json
    launched = launch(*command, workspace=tmp_path / "launched", processes=1)
    for one, other in zip(plain["history"], launched["history"], strict=True):
        assert other["texts"] == one["texts"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_two_processes_sum_gradients_of_bf16_weights_as_one_does(
    llara: Llara, tiny_model: Path, long_corpus: Path, tmp_path: Path
) -> None:
    """In fp32, which DDP does not do."""
    pytest.importorskip("torchao")
    flags = ("--batch-size", 7, "--micro-batch-tokens", 150, "--weights", "bf16", "--optimizer", "adamw-8bit")
    command = ("pretrain", long_corpus, "--model", tiny_model, *PRETRAIN, *flags)
    alone = llara(*command, workspace=tmp_path / "one").json
    together = launch(*command, workspace=tmp_path / "two")
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)


def test_a_run_may_go_on_in_more_processes(llara: Llara, tiny_model: Path, long_corpus: Path, tmp_path: Path) -> None:
    """A finished run's result is told by the first process alone, and no other hangs."""
    command = ("pretrain", long_corpus, "--model", tiny_model, *PRETRAIN, "--batch-size", 7)
    first = llara(*command, workspace=tmp_path).json
    again = launch(*command, workspace=tmp_path)
    assert again["history"] == first["history"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", 5),
        ("--batch-size", 5, "--chunk-size", 2),
        ("--batch-size", 1, "--micro-batch-tokens", 60),
        ("--batch-size", 5, "--backend", "full"),
        ("--batch-size", 3, "--backend", "full", "--chunk-size", 1, "--mask-margin", 0.01, "--dims", "16,8"),
    ],
    ids=["one graph", "GradCache", "small forwards", "full", "full, GradCache"],
)
def test_two_processes_contrast_as_one_does(
    llara: Llara, tiny_model: Path, train: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    """Every query meets the passages of both processes; no dropout, whose draws follow the forwards."""
    command = ("finetune", train, "--model", tiny_model, *FINETUNE, *flags)
    alone = llara(*command, workspace=tmp_path / "one").json
    together = launch(*command, workspace=tmp_path / "two")
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert (one["texts"], one["tokens"]) == (two["texts"], two["tokens"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    weights = [load_file(tmp_path / run / "models/m/model.safetensors") for run in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


def test_sharded_weights_train_go_on_and_are_saved_as_whole_ones(
    llara: Llara, long_corpus: Path, tmp_path: Path
) -> None:
    """FSDP2, tied embeddings, an interruption; the second process waits for the first as long as it takes."""
    model = make_model(tmp_path / "qwen", "qwen")
    flags = ("--batch-size", 7, "--save-every", 2, "--learning-rate", 1e-3)
    command = ("pretrain", long_corpus, "--model", model, *PRETRAIN, *flags)
    alone = llara(*command, workspace=tmp_path / "one").json
    launcher = [sys.executable, *LAUNCHER, f"--nproc_per_node={PROCESSES}", sharded.__file__]
    process = [*launcher, *map(str, command), "-w", str(tmp_path / "two")]
    env = os.environ | sharded.FSDP | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(process, capture_output=True, text=True, check=False, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    for one, two in zip(alone["history"], json.loads(done.stdout)["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    with quiet_transformers():
        models = [AutoModelForCausalLM.from_pretrained(tmp_path / run / "models/m") for run in ("one", "two")]
    whole, shared = (dict(found.named_parameters()) for found in models)
    torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-5)
