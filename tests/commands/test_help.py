"""``--help`` and shell completion: all is shown, nothing is cut, and every flag that scripts rely on is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import Llara, beir, llara

from llara_cli.app import VERBS, load_verb
from llara_cli.commands.flags import parameter_name
from llara_cli.commands.messages import CONFIGS
from llara_cli.core.config import settings_of
from llara_cli.evaluation.config import EvaluateConfig
from llara_cli.retrieval.config import EncodeConfig, IndexConfig, MineConfig, SearchConfig
from llara_cli.training.config import FinetuneConfig, PretrainConfig

__all__ = ["beir", "llara"]
FLAGS: dict[str, str] = json.loads((Path(__file__).parent / "flags.json").read_text())
CONFIG_OF = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig, "mine": MineConfig, "encode": EncodeConfig,
    "index": IndexConfig, "search": SearchConfig, "evaluate": EvaluateConfig,
}  # fmt: skip


def shown(*arguments: str, columns: int = 80) -> str:
    """What a terminal of so many columns shows."""
    command = [sys.executable, "-m", "llara_cli", *arguments]
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "50"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_there_and_explained_and_nothing_is_cut_at_80_columns(verb: str) -> None:
    text = shown(verb, "--help")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert "Examples:" in text or verb in ("status", "clean", "doctor", "backends")
    parameters = load_verb(verb).params
    assert sorted(flag for each in parameters for flag in (*each.opts, *each.secondary_opts) if flag[0] == "-") == (
        FLAGS[verb].split()
    )
    words = text.replace(",", " ").split()
    for parameter in parameters:
        if parameter.param_type_name == "option":
            assert parameter.help
            assert parameter.opts[0] in words


@pytest.mark.parametrize(("verb", "config"), CONFIG_OF.items())
def test_choices_and_defaults_are_shown(verb: str, config: type) -> None:
    text = " ".join(shown(verb, "--help", columns=300).split())
    by_name = {str(parameter.name): parameter for parameter in load_verb(verb).params}
    for field in settings_of(config):
        parameter: Any = by_name[parameter_name(field)]
        if field.choices:
            assert f"{field.flag} [{'|'.join(map(str, field.choices))}]" in text
        if field.setting.complete.endswith("backends"):
            assert f"{field.flag} [" in text
        if field.default is None and field.setting.default:
            assert parameter.show_default
    assert "--model TEXT" in text or verb == "index"


def test_every_setting_has_help_and_open_values_say_how_they_are_chosen() -> None:
    for config in CONFIGS:
        for field in settings_of(config):
            assert field.setting.help, (config.__name__, field.name)
            assert field.setting.help.endswith((".", "...")), (config.__name__, field.name)
    chosen = {"model", "batch_size", "max_length", "learning_rate", "micro_batch_tokens", "recipe", "encoder", "role"}
    for config in CONFIGS:
        for field in settings_of(config):
            if field.path[-1] in chosen and field.default is None:
                assert field.setting.default, (config.__name__, field.name)


def completed(line: str, workspace: Path) -> list[str]:
    """What bash offers after ``line``."""
    environment = os.environ | {
        "_LLARA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1),
        "LLARA_WORKSPACE": str(workspace),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llara_cli"], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout.split()


def test_a_shell_completes_what_there_is(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert llara("encode", beir, "--model", tiny_model, "--name", "small-vectors").code == 0
    assert llara("index", "--name", "small-index").code == 0
    for line, offered in (
        ("llara pre", ["pretrain"]),
        ("llara pretrain c --optimizer paged", ["paged-adamw", "paged-adamw-8bit"]),
        ("llara pretrain c --recipe r", ["released"]),
        ("llara pretrain c --backend q", ["qlora"]),
        ("llara search --index sm", ["small-index"]),
        ("llara index sm", ["small-vectors"]),
        ("llara index --backend ex", ["exact"]),
        ("llara evaluate be", ["beir"]),
        ("llara evaluate beir --datasets scif", ["scifact"]),
        ("llara evaluate beir --datasets nfcorpus,scif", ["nfcorpus,scifact"]),
    ):
        assert completed(line, tmp_path / "ws") == offered, line
