"""The plan of ``--dry-run`` is what then happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Llara, write_jsonl
from tiny import TEXTS, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from llara_cli.model.loading import quiet_transformers
from llara_cli.training.probe import Growth

SMALL = ("--max-length", 110, "--batch-size", 8, "--max-steps", 3, "--name", "m", "--json")


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for whole forwards."""
    documents = [{"text": " ".join(TEXTS[n % 5 :] + TEXTS[: n % 5])} for n in range(60)]
    return write_jsonl(tmp_path_factory.mktemp("wiki") / "wiki.jsonl", documents)


def save(config: Any, folder: Path) -> Path:
    """A random model of the configuration, with the tiny tokenizer."""
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backend", ["full", "lora", "qlora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_parameters_are_those_of_the_model(
    llara: Llara, wiki: Path, tmp_path: Path, backend: str, architecture: str
) -> None:
    model = make_model(tmp_path / "model", architecture)
    flags = ("--model", model, "--backend", backend, "--recipe", "released", "--lora-rank", 4, *SMALL)
    plan = llara("pretrain", wiki, *flags, "--dry-run").json
    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(model)
        loaded.resize_token_embeddings(400 + 16)
    every = sum(weight.numel() for weight in loaded.parameters())
    if backend == "full":
        assert (plan["trained_parameters"], plan["frozen_parameters"]) == (every, 0)
    else:
        widths = sum(m.in_features + m.out_features for name, m in loaded.named_modules() if name.endswith("_proj"))
        assert plan["trained_parameters"] == 4 * widths + 16 * 32  # the adapters, and the rows of the slots
    assert plan["memory"].keys() == {"weights", "gradients", "optimizer", "activations", "runtime"}
    assert plan["steps"] == 3
    assert plan["expected_seconds"] > 0
    assert not (tmp_path / "ws/models").exists()


def test_a_plan_knows_what_gradients_of_bf16_weights_are_summed_in(llara: Llara, wiki: Path, tiny_model: Path) -> None:
    pytest.importorskip("torchao")
    flags = ("--weights", "bf16", "--optimizer", "adamw-8bit", "--dry-run")
    plan = llara("pretrain", wiki, "--model", tiny_model, *SMALL, *flags).json
    weights = plan["trained_parameters"]
    assert (plan["memory"]["weights"], plan["memory"]["gradients"]) == (2 * weights, 4 * weights)


def test_a_model_of_one_layer_and_one_of_two_passes_can_be_planned(llara: Llara, wiki: Path, tmp_path: Path) -> None:
    one = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    alibi = BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)
    for name, config in {"one": one, "alibi": alibi}.items():
        plan = llara("pretrain", wiki, "--model", save(config, tmp_path / name), *SMALL, "--dry-run").json
        assert plan["trained_parameters"] == AutoModelForCausalLM.from_config(config).num_parameters()


def test_a_plan_of_a_small_corpus_is_exact_and_writes_nothing(
    llara: Llara, wiki: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, "--max-length", 60, "--batch-size", 8, "--epochs", 1, "--json")
    plan = llara("pretrain", wiki, *flags, "--dry-run").json
    assert not (tmp_path / "ws").exists()
    done = llara("pretrain", wiki, *flags).json
    counts = ("steps", "texts", "tokens")
    assert [plan[name] for name in counts] == [done[name] for name in counts]
    assert plan["estimated"] == []


def test_a_plan_of_a_large_corpus_says_what_is_estimated(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    large = write_jsonl(tmp_path / "large.jsonl", [{"text": TEXTS[number % 5]} for number in range(1000)])
    flags = ("--model", tiny_model, "--max-length", 110, "--batch-size", 8, "--dry-run")
    plan = llara("pretrain", large, *flags, "--json").json
    assert plan["texts"] == pytest.approx(1000, rel=0.05)
    assert plan["steps"] == -(-plan["texts"] // 8)
    assert plan["estimated"] == ["texts", "tokens", "steps"]
    limited = llara("pretrain", large, *flags, "--max-steps", 50, "--json").json
    assert limited["estimated"] == ["texts", "tokens"]
    lines = [line.split() for line in llara("pretrain", large, *flags).out.splitlines()]
    assert [line[1] for line in lines if line[0] in ("texts", "tokens", "steps")] == ["about"] * 3
    assert not (tmp_path / "ws").exists()


def test_a_plan_of_many_training_rows_says_what_is_estimated(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"query": f"number {number}", "pos": [TEXTS[number % 5]]} for number in range(600)]
    flags = ("--model", tiny_model, "--lora-rank", 2, "--dry-run", "--json")
    plan = llara("finetune", write_jsonl(tmp_path / "many.jsonl", rows), *flags).json
    assert (plan["texts"], plan["estimated"]) == (1200, ["texts", "tokens"])
    plan = llara("finetune", write_jsonl(tmp_path / "few.jsonl", rows[:50]), *flags).json
    assert (plan["texts"], plan["estimated"]) == (100, [])
    assert not (tmp_path / "ws").exists()


def program(*arguments: object) -> dict[str, Any]:
    """The result of a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "llara_cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_memory_is_what_the_run_takes(wiki: Path, tmp_path: Path, backend: str) -> None:
    config = LlamaConfig(
        vocab_size=400, hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6
    )
    flags = ("--model", save(config, tmp_path / "model"), "--backend", backend, "--lora-rank", 8, *SMALL)
    command = ("pretrain", wiki, *flags, "-w", tmp_path / "ws")
    plan = program(*command, "--dry-run")
    assert plan["peak_memory"] == sum(plan["memory"].values())
    taken = json.loads((Path(program(*command)["path"]) / "run.json").read_text())["peak_memory"]
    assert plan["peak_memory"] == pytest.approx(taken, rel=0.15)


def test_the_peak_of_memory_is_not_that_of_the_process_which_started_this_one() -> None:
    held = bytearray(os.urandom(2**20)) * 1024  # a gigabyte that is there
    code = "import torch; from llara_cli.training.probe import peak_memory; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**25 < int(done.stdout) < len(held)


def test_memory_that_is_held_for_a_moment_is_counted() -> None:
    size = 1 << 27
    with Growth(torch.device("cpu")) as growth:
        assert len(b"x" * size) == size
    assert 0.9 * size < growth.peak < 2 * size


@pytest.mark.parametrize("hidden", [32, 512])
def test_memory_of_encoding_is_what_it_takes(tmp_path: Path, hidden: int) -> None:
    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=1408, num_hidden_layers=9, num_attention_heads=8
    )
    texts = write_jsonl(tmp_path / "c.jsonl", [{"_id": f"d{n}", "text": " ".join(TEXTS)} for n in range(16)])
    command = ("encode", texts, "--model", save(config, tmp_path / "model"), "-w", tmp_path / "ws", "--json")
    code = (
        "import sys, torch; from llara_cli import app; from llara_cli.training.probe import peak_memory;"
        "app.run([*sys.argv[1:], '--dry-run']); app.run(sys.argv[1:]); print(peak_memory(torch.device('cpu')))"
    )
    told, _, taken = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ).stdout.splitlines()  # fmt: skip
    plan = json.loads(told)
    assert plan["peak_memory"] == sum(plan["memory"].values())
    assert plan["peak_memory"] == pytest.approx(int(taken), rel=0.3)
