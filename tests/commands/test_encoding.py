"""``llara encode`` loses no work: kills, full disks, damaged shards, other layouts, several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import LAUNCHER, Llara, start, tree, write_jsonl
from tiny import TEXTS
from torch._dynamo.utils import counters

from llara_cli.data.arrow_table import Table
from llara_cli.model.decoder import Decoder
from llara_cli.retrieval.shards import Shards

COUNT, KILLS = 400, int(os.environ.get("LLARA_TEST_KILLS", "4"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many lengths."""
    random.seed(0)
    rows = [
        {"_id": f"d{n}", "title": f"T{n}" * (n % 3), "text": " ".join(random.choices(TEXTS, k=n % 4))}
        for n in range(COUNT)
    ]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows)


def done(process: subprocess.Popen[str]) -> str:
    """What a process that must succeed has printed."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def lasting(folder: Path) -> dict[str, bytes]:
    """What must not vary between equal runs."""
    return {name: content for name, content in tree(folder).items() if name != "run.json"}


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of an uninterrupted run."""
    workspace = tmp_path_factory.mktemp("whole")
    done(start("encode", corpus, "--model", tiny_model, "--shard-size", 20, "--name", "e", "-w", workspace))
    return workspace / "embeddings/e"


def test_kills_at_random_moments_cost_time_only(corpus: Path, tiny_model: Path, tmp_path: Path, whole: Path) -> None:
    folder, draw = tmp_path / "embeddings/e", random.Random(3)
    command = ("encode", corpus, "--model", tiny_model, "--shard-size", 20, "--name", "e", "-w", tmp_path)
    stages, kept = set(), 0
    for _ in range(KILLS):
        process = start(*command)
        wanted = kept + draw.randint(0, 3)  # with so many shards there, and then a moment more, it is killed
        while process.poll() is None and len(list(folder.glob("vectors-*.npy"))) < wanted:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before, kept = kept, len(list(folder.glob("vectors-*.npy")))
        assert kept >= before
        stages.add(kept)
        assert not (folder / "manifest.json").exists() or kept == COUNT // 20
    assert len(stages) > 1
    done(start(*command))
    assert lasting(folder) == lasting(whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "noteless"])
def test_a_damaged_shard_is_made_again(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, whole: Path, damage: str, monkeypatch: Any
) -> None:
    command = ("encode", corpus, "--model", tiny_model, "--shard-size", 20, "--name", "e")
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "totals", _interrupt)  # all shards are made, the artifact is not
        assert llara(*command).code == 130
    folder = tmp_path / "ws/embeddings/e"
    shard, note = folder / "vectors-00003.npy", folder / ".shards/00003.json"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:-5])
    elif damage == "flipped":
        shard.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
    else:
        (shard if damage == "gone" else note).unlink()
    assert llara(*command).code == 0
    assert lasting(folder) == lasting(whole)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_two_processes_make_what_one_makes(corpus: Path, tiny_model: Path, tmp_path: Path, whole: Path) -> None:
    command = ("encode", corpus, "--model", tiny_model, "--shard-size", 20, "--name", "e", "--json", "-w", tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        assert json.loads(done(start(*command, processes=2)))["count"] == COUNT
        assert lasting(tmp_path / "embeddings/e") == lasting(whole)


def test_processes_part_before_they_end(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "end.py"
    script.write_text(
        "import sys, torch\nfrom llara_cli.app import run\n"
        "assert run(sys.argv[1:]) == 0\nassert not torch.distributed.is_initialized()\n"
    )
    command = [sys.executable, *LAUNCHER, "--nproc_per_node=2", script, "encode", corpus, "--model", tiny_model, "-w"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command), str(tmp_path / "ws")], check=True, capture_output=True, env=environment)


def test_other_verbs_refuse_several_processes(llara: Llara, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = llara("index")
    assert (outcome.code, outcome.error) == (
        2, "error: index runs in one process; pretrain, finetune, encode run in several",
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [("--layout", "packed"), ("--batch-tokens", 100), ("--layout", "packed", "--batch-tokens", 300),
     ("--attention", "varlen"), ("--attention", "varlen", "--layout", "packed")],
)  # fmt: skip
def test_layout_and_batch_size_change_float_noise_only(
    llara: Llara, corpus: Path, tiny_model: Path, whole: Path, flags: tuple[object, ...]
) -> None:
    found = llara("encode", corpus, "--model", tiny_model, "--shard-size", 100, *flags, "--json").json
    np.testing.assert_allclose(vectors(Path(found["path"])), vectors(whole), atol=2e-6)


# torch's own, as it compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_layers_give_the_same_vectors(
    llara: Llara, corpus: Path, tiny_model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by a compiler that is done at once: torch's own takes minutes here."""
    monkeypatch.setattr(Decoder, "compile_layers", partialmethod(Decoder.compile_layers, backend="eager"))
    counters.clear()
    found = llara("encode", corpus, "--model", tiny_model, "--shard-size", 100, "--compile", "--json").json
    assert counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(vectors(Path(found["path"])), vectors(whole), atol=2e-6)


def vectors(folder: Path) -> Any:
    """All vectors of an artifact."""
    return np.concatenate([np.load(path) for path in sorted(folder.glob("vectors-*.npy"))])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_finished_shards_are_kept(
    llara: Llara, tiny_model: Path, tmp_path: Path, small_disk: Path
) -> None:
    rows = [{"_id": str(n), "text": "the sea"} for n in range(1500)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    outcome = llara("encode", corpus, "--model", tiny_model, "--shard-size", 100, "--name", "e", workspace=small_disk)
    assert outcome.code == 1
    assert "no space left on the disk" in outcome.error
    folder = small_disk / "embeddings/e"
    kept = sorted(folder.glob("vectors-*.npy"))
    assert 2 < len(kept) < 15
    assert not (folder / "manifest.json").exists()
    assert not list(folder.rglob("*.part"))
    assert all(number in Shards(folder) for number in range(len(kept) - 1))


@pytest.mark.parametrize("backend", ["exact", "faiss", "hnsw"])
def test_a_disk_too_full_for_an_index_is_told(
    llara: Llara, tiny_model: Path, tmp_path: Path, small_disk: Path, backend: str
) -> None:
    rows = [{"_id": str(n), "text": "the sea"} for n in range(700)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    assert llara("encode", corpus, "--model", tiny_model, "--name", "e", workspace=small_disk).code == 0
    before = tree(small_disk)
    outcome = llara("index", "e", "--backend", backend, workspace=small_disk)
    assert (outcome.code, "no space left on the disk" in outcome.error) == (1, True)
    assert tree(small_disk) == before


def test_the_columns_taken_from_a_table_are_told_once(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    table = tmp_path / "passages.tsv"
    table.write_text('id\ttext\ttitle\n1\t"a ""b"""\tT\n')
    outcome = llara("encode", table, "--model", tiny_model, "--name", "e")
    assert outcome.err.count(f"{table}: columns: id, title, text") == 1
    texts = Table(tmp_path / "ws/embeddings/e/texts.arrow")
    assert texts[0] == {"title": "T", "text": 'a "b"'}
