"""The caller's mistakes: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import builtins
import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import Llara, tree, write_jsonl

from llara_cli.core import registry


def left_behind(workspace: Path) -> list[str]:
    """Files of the workspace that are no artifact of an earlier command."""
    return sorted(tree(workspace)) if workspace.exists() else []


def refused(llara: Llara, workspace: Path, *arguments: object) -> str:
    """The error line of a command that must fail as the caller's mistake and leave nothing."""
    before = left_behind(workspace)
    outcome = llara(*arguments)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert left_behind(workspace) == before
    return outcome.error


GOOD = '{"_id": "a", "text": "fine"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no document"),
        (GOOD.encode() + b"{broken\n", "corpus.jsonl:2: not JSON"),
        (GOOD.encode() + b'{"_id": "b"}\n', 'corpus.jsonl:2: no "text"'),
        (GOOD.encode() + b'{"text": "x"}\n', "corpus.jsonl:2: no "),
        (GOOD.encode() * 2, "corpus.jsonl:2"),
        (GOOD.encode() + b'{"_id": "b", "text": "\xe9"}\n', "corpus.jsonl:2: not UTF-8"),
        (GOOD.encode() + b'{"_id": "b", "text": 5}\n', "corpus.jsonl:2"),
        (GOOD.encode() + b"[1]\n", "corpus.jsonl:2"),
    ],
    ids=["empty", "broken", "no-text", "no-id", "duplicate", "encoding", "type", "array"],
)
def test_a_bad_collection(llara: Llara, tiny_model: Path, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    assert message in refused(llara, tmp_path / "ws", "encode", path, "--model", tiny_model)


def test_a_collection_is_checked_before_the_model_is_loaded(
    llara: Llara, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(GOOD * 2)
    from llara_cli.pipelines import encode

    monkeypatch.setattr(encode.Encoding, "load_encoder", lambda self: pytest.fail("the model was loaded"))
    assert "'a'" in refused(llara, tmp_path / "ws", "encode", path, "--model", tiny_model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "wiki.jsonl"),
        ('{"text": "a"}\n{"body": "b"}\n', 'wiki.jsonl:2: no "text"'),
        ('{"text": "a"}\n{"input": "b", "output_summarize": "b"}\n', "wiki.jsonl:2"),
        ('{"text": "  "}\n', "wiki.jsonl"),
    ],
    ids=["empty", "no-text", "mixed", "blank"],
)
def test_a_bad_corpus(llara: Llara, tiny_model: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "wiki.jsonl"
    path.write_text(content)
    assert message in refused(llara, tmp_path / "ws", "pretrain", path, "--model", tiny_model)


def test_bad_training_rows(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"query": "q", "pos": ["p"]}, {"query": "q", "pos": []}])
    assert "train.jsonl:2" in refused(llara, tmp_path / "ws", "finetune", path, "--model", tiny_model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "magic"], "unknown training backend 'magic': known are full, lora"),
        (["--recipe", "soup"], "unknown recipe 'soup': known are paper, released"),
        (["--max-length", 999], "--max-length 999 is above the model's 256 positions"),
        (["--max-length", 20], "a length of 20 tokens is too short"),
        (["--batch-size", 0], "--batch-size must be positive"),
        (["--max-length", 0], "--max-length must be positive"),
        (["--seed", -1], "--seed must lie between"),
        (["--name", "x" * 260], "bad name"),
        (["--max-steps", 3, "--epochs", 1], "exclude each other"),
        (["--dtype", "fp7"], "--dtype must be auto, fp32, bf16 or fp16, not 'fp7'"),
        (["--name", "../x"], "bad name '../x'"),
        (["--preset", "poster"], "--preset must be paper, not 'poster'"),
        (["--targets", "some"], "--targets"),
        (["--lora-rank", 0, "--backend", "lora"], "--lora-rank"),
        (["--model", "/no/such/model"], "no such model: /no/such/model"),
        (["--model", __file__], "is not a folder or a .gguf file"),
        (["--model", "no-such-org/no-such-model"], "no-such-org/no-such-model"),
    ],
)
def test_bad_training_settings(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", tiny_model]
    assert message in refused(llara, tmp_path / "ws", "pretrain", corpus, *model, *arguments)


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "encode"])
def test_a_missing_file(llara: Llara, tiny_model: Path, tmp_path: Path, verb: str) -> None:
    message = refused(llara, tmp_path / "ws", verb, tmp_path / "nowhere.jsonl", "--model", tiny_model)
    assert "nowhere.jsonl" in message
    assert "no such" in message


def test_a_wrong_flag_is_answered_without_the_heavy_libraries(llara: Llara, tmp_path: Path) -> None:
    assert "--modle" in refused(llara, tmp_path / "ws", "pretrain", "x", "--modle", "y")
    assert "'pretrian'. Did you mean 'pretrain'" in refused(llara, tmp_path / "ws", "pretrian", "x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("pretrain", ""), "CORPUS is empty"),
        (("finetune", "a", ""), "TRAIN is empty"),
        (("encode", "c", "--model", ""), "--model is empty"),
        (("search", "x", "--index", ""), "--index is empty"),
        (("index", "--set", ""), "--set is empty"),
        (("export", "", "x.npy"), "EMBEDDINGS is empty"),
        (("index", "--spec="), "--spec is empty"),
        (("search", "x", "--topk", "3"), "(llara search --help lists what is available)"),
    ],
)
def test_what_an_unset_variable_leaves_is_refused(
    llara: Llara, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert told in refused(llara, tmp_path / "ws", *arguments)


def test_a_strange_path_stays_on_one_line(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    error = refused(llara, tmp_path / "ws", "encode", "no\n\x1b[31msuch/基 file", "--model", tiny_model)
    assert r"no\n\x1b[31msuch/基 file" in error


def test_an_unwritable_workspace(llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    outcome = llara("pretrain", corpus, "--model", tiny_model, workspace=blocked / "ws")
    assert outcome.code == 2
    assert f"workspace {blocked / 'ws'}" in outcome.error


def test_bad_toml(llara: Llara, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    toml = tmp_path / "ws" / "llara.toml"
    toml.write_text("[encode]\nmax-lenght = 3\n")
    assert "[encode] has no setting max-lenght" in refused(llara, tmp_path / "ws", "encode", "x")
    toml.write_text("[encode\n")
    assert "llara.toml" in refused(llara, tmp_path / "ws", "encode", "x")


def test_nothing_to_take(llara: Llara, beir: Path, tmp_path: Path) -> None:
    assert "no models in" in refused(llara, tmp_path / "ws", "encode", beir)
    assert "no embeddings of passages in" in refused(llara, tmp_path / "ws", "index")
    assert "no indexes in" in refused(llara, tmp_path / "ws", "search", "x")
    assert "give one of" in refused(llara, tmp_path / "ws", "search")
    assert "give a benchmark" in refused(llara, tmp_path / "ws", "evaluate")
    assert "no benchmark or folder 'baer'" in refused(llara, tmp_path / "ws", "evaluate", "baer")


@pytest.fixture
def library(llara: Llara, beir: Path, tiny_model: Path) -> str:
    """An index of the small collection."""
    llara("encode", beir, "--model", tiny_model, "--name", "passages")
    assert llara("index", "passages", "--name", "library").code == 0
    return "library"


def test_a_length_too_short_for_the_prompt_costs_no_name(
    llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    command = ("encode", beir, "--model", tiny_model, "--name", "e")
    assert "too short" in refused(llara, tmp_path / "ws", *command, "--max-length", 3)
    assert llara(*command).code == 0
    assert "too short" in refused(llara, tmp_path / "ws", *command, "--max-length", 3, "--restart")


def test_bad_searches(llara: Llara, library: str, beir: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    assert "unknown index 'libary'" in refused(llara, workspace, "search", "x", "--index", "libary")
    assert "not UTF-8" in refused(llara, workspace, "search", "x\udcff")
    assert "--top-k must be positive" in refused(llara, workspace, "search", "x", "-k", 0)
    assert "has no parameter 'ef' here" in refused(llara, workspace, "search", "x", "--set", "ef=3")
    assert "write it as key=value" in refused(llara, workspace, "search", "x", "--set", "ef")
    queries = ("--queries", beir / "queries.jsonl")
    assert "needs --output FILE" in refused(llara, workspace, "search", *queries)
    output = tmp_path / "no" / "run"
    assert "no such folder" in refused(llara, workspace, "search", *queries, "--output", output)
    assert "unknown --format" in refused(
        llara, workspace, "search", *queries, "--output", tmp_path / "r", "--format", "x"
    )
    assert "too short" in refused(llara, workspace, "search", "x", "--query-length", 3)
    assert "positions" in refused(llara, workspace, "search", "x", "--query-length", 999)


def test_another_model_than_the_indexs(llara: Llara, library: str, tiny_model: Path, tmp_path: Path) -> None:
    from tiny import make_model

    other = make_model(tmp_path / "other", seed=1)
    assert "was made with model 'tiny', not with 'other'" in refused(
        llara, tmp_path / "ws", "search", "x", "--model", other
    )
    assert llara("search", "x", "--model", tiny_model).code == 0


def test_a_model_named_for_a_search_that_is_not_there_is_no_hub_id(
    llara: Llara, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llara_cli.model import source

    monkeypatch.setattr(source, "hub_recipe", lambda repo_id: pytest.fail(f"asked the hub for {repo_id}"))
    told = refused(llara, tmp_path / "ws", "search", "x", "--model", "tiny")
    assert told.startswith("error: --model tiny does not exist; index 'library' was made with model 'tiny' of this")


def test_a_bad_role_of_texts_is_told_in_a_plan_too(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    told = refused(llara, tmp_path / "ws", "encode", beir, "--model", tiny_model, "--as", "foo", "--dry-run")
    assert told == "error: --as must be passage or query, not 'foo'"


def test_a_model_that_changed_since(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    from tiny import make_model

    model = shutil.copytree(tiny_model, tmp_path / "mine")
    llara("encode", beir, "--model", model)
    llara("index")
    make_model(model, seed=1)
    assert "changed since" in refused(llara, tmp_path / "ws", "search", "x")


def test_a_model_that_is_gone_is_not_looked_for_on_the_hub(
    llara: Llara, beir: Path, train: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one of the workspace, whose name might be a hub id, nor a folder."""
    from llara_cli.model import source

    workspace, elsewhere = tmp_path / "ws", shutil.copytree(tiny_model, tmp_path / "elsewhere")
    assert llara("finetune", train, "--model", tiny_model, "--max-steps", 1, "--name", "tuned").code == 0
    for model in ("tuned", elsewhere):
        assert llara("encode", beir, "--model", model, "--name", Path(model).name).code == 0
        assert llara("index", Path(model).name, "--name", Path(model).name).code == 0
    monkeypatch.setattr(source, "hub_recipe", lambda repo_id: pytest.fail(f"asked the hub for {repo_id}"))
    monkeypatch.chdir(elsewhere.parent)
    for folder in (workspace / "models" / "tuned", elsewhere):
        shutil.rmtree(folder)
        shutil.copytree(tiny_model, tmp_path / "tuned", dirs_exist_ok=True)  # no more than a name in common
        told = refused(llara, workspace, "search", "x", "--index", folder.name)
        assert f"was made with model {folder.name!r}, which was not found: no " in told
        assert str(folder) in told


def test_a_hub_model_that_cannot_be_had_is_gone_and_not_changed(llara: Llara, library: str, tmp_path: Path) -> None:
    path = tmp_path / "ws/indexes/library/manifest.json"
    made = json.loads(path.read_text())
    made["settings"] |= {"model": "no-such-model", "source": "no-such-org/no-such-model"}
    made["parents"]["model"] = "hub:no-such-org/no-such-model@0123abcd"
    path.write_text(json.dumps(made))
    told = refused(llara, tmp_path / "ws", "search", "x")
    assert "which was not found: no-such-org/no-such-model is neither in the hub's cache" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--backend", "magic"],
            "unknown index backend 'magic': known are exact, faiss (pip install 'llara[faiss]'), hnsw",
        ),
        (["--backend", "faiss", "--spec", "Nonsense"], "Nonsense"),
        (["--backend", "faiss", "--spec", "IVF64,Flat"], "64"),
        (["--backend", "hnsw", "--set", "M=many"], "'many' is not of type int"),
        (["--backend", "hnsw", "--device", "cuda"], "CPU"),
        (["--backend", "faiss", "--device", "cuda"], "faiss-gpu"),
    ],
)
def test_bad_indexes(llara: Llara, library: str, tmp_path: Path, arguments: list[object], message: str) -> None:
    assert message in refused(llara, tmp_path / "ws", "index", "passages", "--name", "another", *arguments)


def test_a_missing_extra_is_named_with_its_install_command(
    llara: Llara, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_faiss(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return real(name, *arguments)

    for module in [name for name in sys.modules if name.partition(".")[0] == "faiss" or "index_faiss" in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_faiss)
    message = refused(llara, tmp_path / "ws", "index", "passages", "--backend", "faiss")
    assert "pip install 'llara[faiss]'" in message
    state = {(item.kind, item.name): item for item in registry.availability()}
    assert not state["index", "faiss"].usable
    assert state["index", "exact"].usable


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('raise RuntimeError("no CUDA\\nhere")', "RuntimeError: no CUDA"),
        ("def broken(:", "SyntaxError: invalid syntax (theirs.py, line 1)"),
        ('import ctypes; ctypes.CDLL("libno-such.so")', "OSError: libno-such.so: cannot open shared object file"),
        ("", "AttributeError: module 'theirs' has no attribute 'Index'"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ('raise SystemExit("bye")', "SystemExit: bye"),
    ],
)
def test_a_backend_whose_code_fails_is_not_usable_and_stops_no_other(
    llara: Llara, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    package = tmp_path / "site"
    (package / "theirs-1.0.dist-info").mkdir(parents=True)
    (package / "theirs-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "theirs-1.0.dist-info/entry_points.txt").write_text("[llara.index]\nmine = theirs:Index\n")
    (package / "theirs.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    for command in ("backends", "doctor"):
        told = {(item["kind"], item["name"]): item for item in llara(command, "--json").json["backends"]}
        assert told["index", "mine"]["package"] == "theirs"
        assert not told["index", "mine"]["usable"]
        assert told["index", "mine"]["hint"].startswith(reason)
        assert told["index", "exact"]["usable"]
    outcome = llara("index", "passages", "--backend", "mine")
    assert outcome.code == (2 if "No module" in reason else 1)
    assert outcome.error.startswith("error: the index backend 'mine' ")
    assert f"cannot be imported: {reason}" in outcome.error
    assert llara("search", "the sea").code == 0


def test_a_damaged_store_is_no_crash(llara: Llara, library: str, tmp_path: Path) -> None:
    shard = tmp_path / "ws/embeddings/passages/vectors-00000.npy"
    shard.write_bytes(shard.read_bytes()[:100])
    outcome = llara("index", "passages", "--name", "again")
    assert outcome.code == 1
    assert "vectors-00000.npy: damaged shard" in outcome.error
    assert not (tmp_path / "ws/indexes/again").exists()


def test_a_pickle_is_never_loaded(llara: Llara, library: str, tmp_path: Path) -> None:
    shard = tmp_path / "ws/embeddings/passages/vectors-00000.npy"
    with shard.open("wb") as file:
        np.save(file, np.array([{"evil": True}], dtype=object), allow_pickle=True)
    outcome = llara("index", "passages", "--name", "again")
    assert outcome.code == 1
    assert "damaged shard" in outcome.error


def test_bad_evaluations(llara: Llara, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    workspace, model = tmp_path / "ws", ("--model", tiny_model)
    assert "no split 'dev'" in refused(llara, workspace, "evaluate", beir, "--split", "dev", *model)
    assert "'nDCG@x'" in refused(llara, workspace, "evaluate", beir, "--metrics", "nDCG@x", *model)
    root = ("--data-root", beir.parent)
    assert "scifcat" in refused(llara, workspace, "evaluate", "beir", "--datasets", "scifcat", *root, *model)
    assert "--data-root is needed" in refused(llara, workspace, "evaluate", "beir", *model)
    assert "--run RUN needs --qrels" in refused(llara, workspace, "evaluate", "--run", beir)
    (tmp_path / "bad.trec").write_text("q0 Q0 d0 1\n")
    qrels = ("--qrels", beir / "qrels" / "test.tsv")
    assert "bad.trec:1" in refused(llara, workspace, "evaluate", "--run", tmp_path / "bad.trec", *qrels)
    assert "not a BEIR folder" in refused(llara, workspace, "evaluate", tmp_path, *model)


def test_nan_from_the_model_is_a_failure_not_a_result(
    llara: Llara, beir: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "nan")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    outcome = llara("encode", beir, "--model", model)
    assert outcome.code == 1
    assert "NaN" in outcome.error
    assert not list((tmp_path / "ws").rglob("vectors-*"))
    outcome = llara("pretrain", corpus, "--model", model, "--max-length", 60)
    assert outcome.code == 1
    assert "llama gives NaN or infinite hidden states: its weights are damaged" in outcome.error
    assert not list((tmp_path / "ws").rglob("models/*/manifest.json"))


def test_a_traceback_only_with_verbose(llara: Llara, tmp_path: Path) -> None:
    assert "Traceback" not in llara("encode", tmp_path / "x").err
    assert "Traceback" in llara("encode", tmp_path / "x", "-v").err


def test_gzip_that_is_cut_off(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + json.dumps({"_id": "b", "text": "x" * 9999})).encode())[:60])
    assert "corpus.jsonl.gz" in refused(llara, tmp_path / "ws", "encode", path, "--model", tiny_model)


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    llara: Llara, train: Path, beir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave it alone after a colon or an equals sign, inside quotes, and in ``llara.toml``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model, no = ("--model", tiny_model), f"no such file: {tmp_path}/no"
    assert no in llara("pretrain", "~/no.txt", *model).error
    assert "no such file: ~nobody-here/no.txt" in llara("pretrain", "~nobody-here/no.txt", *model).error
    assert no in llara("finetune", "~/train.jsonl:2", "~/no.jsonl:2", *model).error
    assert f"no such folder: {tmp_path}/no" in llara("finetune", train, *model, "--dev", "~/no").error
    assert no in llara("encode", "~/no.jsonl", *model).error
    assert no in llara("encode", "--from", "~/no.npy", *model).error
    assert no in llara("mine", "~/train.jsonl", "--model", "bm25", "--corpus", "~/no.jsonl").error
    assert f"--data-root {tmp_path}/no" in llara("evaluate", "beir", *model, "--data-root", "~/no").error
    assert no in llara("evaluate", "--run", "~/no.trec", "--qrels", "~/sets/small/qrels/test.tsv").error
    assert "no split 'dev'" in llara("evaluate", "~/sets/small", "--split", "dev", *model).error
    (tmp_path / "ws").mkdir(exist_ok=True)
    (tmp_path / "ws/llara.toml").write_text('[evaluate]\ndata-root = "~/no"\n')
    assert f"--data-root {tmp_path}/no" in llara("evaluate", "beir", *model).error
