"""What a command takes when nothing is named: the newest of the user's own, whatever files' times or damage say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from program import Llara, write_jsonl
from tiny import TEXTS, make_model

TRAINING = ("--backend", "full", "--max-steps", 1, "--negatives", 1, "--batch-size", 2)


def reverse_times(folder: Path) -> None:
    """Make what was written last look as if it were written first."""
    now = folder.stat().st_mtime
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (2 * now - path.stat().st_mtime,) * 2)


def test_a_copied_workspace_chooses_the_same(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("late-by-name", "a"):
        assert llara("finetune", train, "--model", tiny_model, *TRAINING, "--name", name).code == 0
        assert llara("encode", beir, "--model", tiny_model, "--name", name).code == 0
        assert llara("index", name, "--name", name).code == 0
    copy = shutil.copytree(tmp_path / "ws", tmp_path / "copy")
    reverse_times(copy)
    for workspace in (tmp_path / "ws", copy):
        assert llara("encode", beir, "--dry-run", "--json", workspace=workspace).json["name"] == "a-small"
        assert llara("index", "--dry-run", "--json", workspace=workspace).json["name"] == "a-exact"
        assert llara("search", "the sea", "--json", workspace=workspace).json["index"] == "a"
        listed = llara("status", "--json", workspace=workspace).json["artifacts"]
        assert [row["name"] for row in listed] == ["late-by-name", "a"] * 3


def test_what_mining_makes_for_itself_is_not_searched(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mine = ("mine", train, "--corpus", beir, "--model", tiny_model, "--depth", 4, "--per-query", 1)
    assert llara(*mine).code == 0
    (made,) = (path.name for path in (tmp_path / "ws/indexes").iterdir())
    refused = llara("search", "the sea")
    assert refused.code == 2
    assert refused.error.endswith(f"run llara index first. Other commands made these on the way; "
                                  f"to use one, name it: {made}")  # fmt: skip
    assert llara("search", "the sea", "--index", made).code == 0
    assert llara("encode", beir, "--model", tiny_model, "--name", "passages").code == 0
    assert llara("index", "--name", "library").code == 0
    assert llara(*mine, "--max-length", 60, "--name", "later").code == 0  # with embeddings and an index of its own
    assert len(list((tmp_path / "ws/indexes").iterdir())) == 3
    assert llara("search", "the sea", "--json").json["index"] == "library"
    gone = tmp_path / "gone"
    gone.write_text("d0\n")
    assert llara("index", "--remove", gone, "--json").json["name"] == "library"


def test_mining_keeps_clear_of_the_names_of_the_users_indexes(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"_id": "m", "text": TEXTS[0]}])
    for collection, name in ((beir, "passages"), (more, "more")):
        assert llara("encode", collection, "--model", tiny_model, "--name", name).code == 0
    assert llara("index", "passages").code == 0
    assert llara("index", "more", "--append", "--name", "passages-exact").code == 0
    mined = llara("mine", train, "--corpus", beir, "--model", tiny_model, "--depth", 4, "--per-query", 1)
    assert mined.code == 0, mined.err


def test_rounds_leave_their_last_model_as_the_newest(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rounds = ("--model", tiny_model, *TRAINING, "--rounds", 2, "--corpus", beir, "--name", "m")
    assert llara("finetune", train, *rounds).code == 0
    assert "no indexes in" in llara("search", "the sea").error
    assert llara("encode", beir, "--dry-run", "--json").json["name"] == "m-small"
    shutil.rmtree(tmp_path / "ws/models/m")  # as if the second round had not been reached
    refused = llara("encode", beir)
    assert (refused.code, refused.error.endswith("name it: m-round1")) == (2, True)


@pytest.fixture
def damaged(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """A workspace whose newest embeddings and newest model have broken manifests."""
    workspace = tmp_path / "ws"
    for name in ("whole", "broken"):
        assert llara("encode", beir, "--model", tiny_model, "--name", name).code == 0
    (workspace / "embeddings/broken/manifest.json").write_text('{"settings": {}}')
    (workspace / "models/broken").mkdir(parents=True)
    (workspace / "models/broken/manifest.json").write_text("{")
    return workspace


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("index",), "embeddings/broken/manifest.json"),
        (("evaluate", "BEIR", "--model", "MODEL"), "embeddings/broken/manifest.json"),
        (("mine", "TRAIN", "--corpus", "BEIR", "--model", "MODEL", "--depth", 4, "--per-query", 1), "embeddings"),
        (("finetune", "TRAIN", *TRAINING), "models/broken/manifest.json"),
    ],
    ids=["index", "evaluate", "mine", "finetune"],
)
def test_a_damaged_manifest_stops_no_other(
    llara: Llara, damaged: Path, beir: Path, train: Path, tiny_model: Path, command: tuple[object, ...], file: str
) -> None:
    (damaged / "llara.toml").write_text(f'model = "{tiny_model}"\n')
    given = {"BEIR": beir, "MODEL": tiny_model, "TRAIN": train}
    done = llara(*(given.get(str(part), part) for part in command))
    assert done.code == 0, done.err
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning: ") and "manifest" in line]
    assert f"{damaged}/{file}" in warning
    assert warning.endswith("left out")


def test_what_a_command_makes_for_itself_is_made_anew_where_it_is_damaged(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mine = ("mine", train, "--corpus", beir, "--model", tiny_model, "--depth", 4, "--per-query", 1, "--json")
    first = llara(*mine).json
    manifests = [path for kind in ("embeddings", "indexes") for path in (tmp_path / "ws" / kind).rglob("manifest.json")]
    before = [path.read_bytes() for path in manifests]
    assert len(before) == 2
    for path in manifests:
        path.write_text("{")
    again = llara(*mine, "--restart")
    assert again.code == 0, again.err
    assert again.json | {"seconds": 0} == first | {"seconds": 0}
    assert [path.read_bytes() for path in manifests] == before


def test_a_damaged_run_log_makes_an_artifact_the_oldest(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("older", "newer"):
        assert llara("encode", beir, "--model", tiny_model, "--name", name).code == 0
    (tmp_path / "ws/embeddings/newer/run.json").write_text("{")
    done = llara("index", "--json")
    assert done.json["name"] == "older-exact"
    assert f"warning: {tmp_path}/ws/embeddings/newer/run.json: unreadable" in done.err
    assert [row["name"] for row in llara("status", "--json").json["artifacts"][:2]] == ["newer", "older"]


def make_remote_model(folder: Path) -> Path:
    """A model that brings Python code of its own."""
    make_model(folder)
    (folder / "own_code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        'class OwnConfig(LlamaConfig):\n    model_type = "own"\n\n\n'
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_rounds_trust_a_models_own_code_to_the_end(llara: Llara, train: Path, beir: Path, tmp_path: Path) -> None:
    model = make_remote_model(tmp_path / "own")
    rounds = ("--model", model, *TRAINING, "--rounds", 2, "--corpus", beir, "--name", "m")
    done = llara("finetune", train, *rounds, "--trust-remote-code")
    assert done.code == 0, done.err
