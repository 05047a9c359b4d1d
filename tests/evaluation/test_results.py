"""What an evaluation leaves behind, when it is taken again, and when it is measured anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_sets import random_set, write_set
from program import Llara, tree
from tiny import make_model

from llara_cli.core.artifacts import sha256_file
from llara_cli.core.workspace import Workspace
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import read_documents
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.data.runs import read_qrels, read_run
from llara_cli.evaluation.metrics import evaluate

BM25 = ("--model", "bm25")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One data set."""
    return random_set(tmp_path / "sets" / "small", 0)


def saved(workspace: Path, benchmark: str, model: str, name: str) -> dict[str, Any]:
    """A result on disk."""
    found: dict[str, Any] = json.loads((workspace / "results" / benchmark / model / f"{name}.json").read_text())
    return found


def searched(outcome: Any) -> bool:
    """Whether the command searched, by its bar."""
    return "searching" in outcome.err


def test_a_result_says_all_that_it_depends_on(llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    llara("encode", folder, "--model", tiny_model, "--name", "mine")
    result = llara("evaluate", folder, "--model", tiny_model, "--json").json
    kept = saved(tmp_path / "ws", "small", "tiny", "small")
    assert {**kept["metrics"], "queries": kept["queries"]} == result["datasets"]["small"]
    assert kept["split"] == "test"
    manifest = json.loads((tmp_path / "ws/embeddings/mine/manifest.json").read_text())
    assert kept["fingerprints"] == {
        "model": manifest["parents"]["model"],
        "corpus": sha256_file(folder / "corpus.jsonl"),
        "queries": sha256_file(folder / "queries.jsonl"),
        "qrels": sha256_file(folder / "qrels/test.tsv"),
    }
    assert kept["settings"] == {
        "top_k": 1000, "drop_identical_ids": False, "max_length": 256, "query_length": 256, "dtype": "fp32",
        "encoder": "torch", "index_backend": "exact", "dim": None,
    }  # fmt: skip
    assert {"llara", "python", "torch", "transformers", "ir_measures", "pytrec_eval-terrier"} <= kept["versions"].keys()
    run = tmp_path / "ws/results/small/tiny/small.trec"
    assert kept["run"] == {"file": "small.trec", "sha256": sha256_file(run)}
    again = evaluate(read_qrels(folder / "qrels/test.tsv"), read_run(run))
    assert kept["per_query"] == again.per_query
    assert kept["metrics"] == pytest.approx(again.means)


def test_only_judged_queries_are_encoded(llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert llara("evaluate", folder, "--model", tiny_model).code == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "ws/embeddings").glob("*/manifest.json")]
    counts = {manifest["settings"]["as"]: manifest["counts"]["count"] for manifest in manifests}
    assert counts == {"passage": 30, "query": 6}  # two of eight have no judgments


def test_what_a_user_encoded_is_not_encoded_again(llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    llara("encode", folder, "--model", tiny_model, "--name", "mine")
    assert llara("evaluate", folder, "--model", tiny_model).code == 0
    roles = [
        json.loads(path.read_text())["settings"]["as"] for path in (tmp_path / "ws/embeddings").glob("*/manifest.json")
    ]
    assert sorted(roles) == ["passage", "query"]


@pytest.mark.parametrize("model", ["bm25", "tiny"])
def test_what_is_done_is_not_done_again(
    llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path, model: str
) -> None:
    chosen = ("--model", model if model == "bm25" else tiny_model, "--json")
    first = llara("evaluate", folder, *chosen)
    before = tree(tmp_path / "ws")
    second = llara("evaluate", folder, *chosen)
    assert searched(first)
    assert not searched(second)
    assert second.json == first.json
    assert tree(tmp_path / "ws") == before
    assert "has the results of small already" in second.err
    anew = llara("evaluate", folder, *chosen, "--restart")
    assert searched(anew)
    assert anew.json == first.json


def test_the_same_data_elsewhere_are_the_same_data(llara: Llara, folder: Path, tmp_path: Path) -> None:
    llara("evaluate", folder, *BM25)
    copy = shutil.copytree(folder, tmp_path / "copy" / "small")
    assert not searched(llara("evaluate", copy, *BM25))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("--max-length", 40), "max_length was 256, now 40"),
        (("--query-length", 40), "query_length was 256, now 40"),
        (("--top-k", 5), "top_k was 1000, now 5"),
        (("--drop-identical-ids",), "drop_identical_ids was False, now True"),
        (("--dim", 16), "dim was None, now 16"),
    ],
)
def test_other_settings_are_measured_anew(
    llara: Llara, folder: Path, tiny_model: Path, change: tuple[object, ...], reason: str
) -> None:
    call = ("evaluate", folder, "--model", tiny_model)
    llara(*call)
    outcome = llara(*call, *change)
    assert outcome.code == 0, outcome.err
    assert searched(outcome)
    assert f"evaluated again ({reason})" in outcome.err
    assert not searched(llara(*call, *change))


def test_settings_that_change_nothing_are_not(llara: Llara, folder: Path, tiny_model: Path) -> None:
    call = ("evaluate", folder, "--model", tiny_model)
    llara(*call)
    assert not searched(llara(*call, "--batch-tokens", 64, "--max-length", 256))


def test_two_evaluations_of_the_same_at_once(llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = random_set(tmp_path / "sets" / "other", 1)
    workspace = Workspace(tmp_path / "ws")
    with workspace.lock("results/small/bm25/small"):
        refused = llara("evaluate", folder, *BM25)
        assert refused.code == 2
        assert "results/small/bm25/small is being built by another process" in refused.error
        assert llara("evaluate", other, *BM25).code == 0
        assert llara("evaluate", folder, "--model", tiny_model).code == 0
    assert llara("evaluate", folder, *BM25).code == 0


def test_judged_queries_are_written_by_one_process_at_a_time(
    llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    held, begun = threading.Event(), threading.Event()

    def write() -> None:
        with Workspace(tmp_path / "ws").lock("cache/queries"):
            begun.set()
            held.wait(timeout=1)
            assert not list((tmp_path / "ws/cache").rglob("*.jsonl"))

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        assert begun.wait(timeout=5)
        assert llara("evaluate", folder, "--model", tiny_model).code == 0
        writing.result()


def test_queries_of_sets_of_one_name_do_not_meet(tmp_path: Path) -> None:
    sets = [EvalDataset(BeirFolder(random_set(tmp_path / str(seed) / "small", seed)), "test") for seed in (0, 1)]
    written = [data.write_queries(tmp_path / "queries") for data in sets]
    for data, path in zip(sets, written, strict=True):
        assert path.name == "small-test.jsonl"  # as embeddings are found again by it
        assert {document.id: document.text for document in read_documents(path)} == data.queries


def test_another_model_of_the_same_name(llara: Llara, folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "mine")
    call = ("evaluate", folder, "--model", model, "--json")
    first = llara(*call).json
    make_model(model, seed=1)
    outcome = llara(*call)
    assert searched(outcome)
    assert "evaluated again (another model)" in outcome.err
    assert outcome.json["datasets"] != first["datasets"]


@pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_other_data(llara: Llara, folder: Path, part: str) -> None:
    llara("evaluate", folder, *BM25)
    other = random_set(folder.parent.parent / "other", 7)
    shutil.copy(other / part, folder / part)
    outcome = llara("evaluate", folder, *BM25)
    assert searched(outcome)
    assert f"evaluated again (another {part.partition('.')[0].partition('/')[0]})" in outcome.err


def test_a_further_metric_is_computed_from_the_saved_run(llara: Llara, folder: Path, tmp_path: Path) -> None:
    whole = llara("evaluate", folder, *BM25, "--json", "--metrics", "nDCG@10,AP,P(rel=2)@3,R@100,MRR@10").json
    fresh = ("evaluate", folder, *BM25, "--json")
    first = llara(*fresh, workspace=tmp_path / "second")
    more = llara(*fresh, "--metrics", "AP,P(rel=2)@3", workspace=tmp_path / "second")
    assert searched(first)
    assert not searched(more)
    assert "computed from" in more.err
    names = ("AP", "P(rel=2)@3")
    assert more.json["datasets"]["small"] == {name: whole["datasets"]["small"][name] for name in (*names, "queries")}
    kept = saved(tmp_path / "second", "small", "bm25", "small")
    assert set(kept["metrics"]) == {"nDCG@10", "R@100", "MRR@10", *names}  # those of before are still there
    assert llara(*fresh, workspace=tmp_path / "second").json == first.json


def test_a_run_that_was_changed_is_not_believed(llara: Llara, folder: Path, tmp_path: Path) -> None:
    first = llara("evaluate", folder, *BM25, "--json", "--metrics", "nDCG@10,AP").json["datasets"]["small"]
    run = tmp_path / "ws/results/small/bm25/small.trec"
    run.write_text("".join(line for line in run.read_text().splitlines(keepends=True) if line.split()[3] != "1"))
    outcome = llara("evaluate", folder, *BM25, "--json", "--metrics", "nDCG@10,P@1")
    assert searched(outcome)
    assert outcome.json["datasets"]["small"]["nDCG@10"] == first["nDCG@10"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metrics": {}}'])
def test_a_damaged_result_is_measured_again(llara: Llara, folder: Path, tmp_path: Path, text: str) -> None:
    first = llara("evaluate", folder, *BM25, "--json").json
    (tmp_path / "ws/results/small/bm25/small.json").write_text(text)
    outcome = llara("evaluate", folder, *BM25, "--json")
    assert searched(outcome)
    assert outcome.json == first


def test_metrics_deeper_than_the_hits_are_told(llara: Llara, folder: Path) -> None:
    outcome = llara("evaluate", folder, *BM25, "-k", 10, "--metrics", "R@100,R@10")
    assert "--top-k 10 gives too few hits for R@100" in outcome.err


def test_ids_with_white_space(llara: Llara, tiny_model: Path, tmp_path: Path) -> None:
    """No TREC run can hold them; the figures are the same as with other ids, and the run is kept as JSON lines."""
    texts = {f"d {n}": text for n, text in enumerate(("sea boat", "sea rain", "wind wave", "boat net"))}
    asked = {"q0": "sea", "q 1": "boat", "q2": "wave"}
    qrels = [("q0", "d 0", 1), ("q 1", "d 3", 2), ("q2", "d 2", 1)]
    plain = {name.replace(" ", "-"): text for name, text in texts.items()}
    spaced = write_set(tmp_path / "spaced", texts, asked, qrels)
    write_set(
        tmp_path / "plain", plain, {name.replace(" ", "-"): text for name, text in asked.items()},
        [(query.replace(" ", "-"), document.replace(" ", "-"), grade) for query, document, grade in qrels],
    )  # fmt: skip
    for model in (tiny_model, "bm25"):
        found = [
            llara("evaluate", tmp_path / name, "--model", model, "--json").json["datasets"][name]
            for name in ("spaced", "plain")
        ]
        assert found[0] == found[1]
        results = tmp_path / "ws/results/spaced" / Path(model).name
        assert sorted(path.name for path in results.iterdir()) == ["spaced.json", "spaced.jsonl"]
    outcome = llara("evaluate", spaced, *BM25, "--json", "--metrics", "AP")
    assert not searched(outcome)
    assert outcome.json["datasets"]["spaced"]["AP"] > 0
    again = llara("evaluate", "--run", results / "spaced.jsonl", "--qrels", spaced / "qrels/test.tsv", "--json")
    assert again.json["datasets"]["spaced"]["nDCG@10"] == found[0]["nDCG@10"]


def test_a_metric_that_the_judgments_are_not_for_is_refused_before_any_work(llara: Llara, tmp_path: Path) -> None:
    graded = write_set(tmp_path / "graded", {"d": "sea"}, {"q": "sea"}, [("q", "d", 5)])
    outcome = llara("evaluate", graded, *BM25, "--metrics", "nDCG@10,ERR@5")
    assert outcome.code == 2
    assert outcome.error.startswith("error: ERR@5: gdeval.pl computes it, and takes grades up to 4: query 'q' has 5")
    assert not (tmp_path / "ws").exists()


def test_a_run_with_its_own_judgments_goes_by_its_name(llara: Llara, tmp_path: Path) -> None:
    (tmp_path / "rival.trec").write_text("q1 Q0 d1 1 2.0 x\n")
    (tmp_path / "test.tsv").write_text("q1\td1\t1\n")
    call = ("evaluate", "--run", tmp_path / "rival.trec", "--qrels", tmp_path / "test.tsv")
    assert llara(*call, "--json").json["model"] == "rival"
    named = llara(*call, "--name", "Rival 2", "--json").json
    assert (named["benchmark"], named["model"], list(named["datasets"])) == ("rival", "Rival 2", ["rival"])
    assert "Rival 2" in llara(*call, "--name", "Rival 2").out
    for unseen in (" ", "a\nb"):
        refused = llara(*call, "--name", unseen)
        assert (refused.code, "use letters that can be printed" in refused.error) == (2, True)


def test_somebody_elses_run_stands_in_the_same_table(llara: Llara, folder: Path, tmp_path: Path) -> None:
    bm25 = llara("evaluate", folder, *BM25, "--json").json["datasets"]["small"]
    run = shutil.copy(tmp_path / "ws/results/small/bm25/small.trec", tmp_path / "rival.trec")
    outcome = llara("evaluate", folder, "--run", run, "--json")
    assert outcome.json["model"] == "rival"
    assert outcome.json["datasets"]["small"] == bm25
    named = llara("evaluate", folder, "--run", run, "--name", "Rival 2")
    assert "Rival 2" in named.out
    assert "rival" in named.out
    assert "bm25" in named.out
    with Path(run).open("a") as file:
        file.write("q0 Q0 new 1 99 x\n")
    changed = llara("evaluate", folder, "--run", run, "--json")
    assert "evaluated again (another model)" in changed.err
    assert changed.json["datasets"]["small"]["nDCG@10"] < bm25["nDCG@10"]


def test_a_folder_of_runs_serves_a_benchmark(llara: Llara, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for seed, name in enumerate(("scifact", "cqadupstack/gis")):
        random_set(root / name, seed)
    call = ("evaluate", "beir", "--datasets", "scifact,cqadupstack/gis", "--data-root", root, "--json")
    told = llara(*call, *BM25, "--max-length", 64)
    assert "BM25 reads whole texts" in told.err
    bm25 = told.json
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(tmp_path / "ws/results/beir/bm25/scifact.trec", runs / "scifact.trec")
    shutil.copy(tmp_path / "ws/results/beir/bm25/cqadupstack/gis.trec", runs / "cqadupstack-gis.run")
    assert llara(*call, "--run", runs).json == bm25 | {"model": "runs"}
    (runs / "scifact.trec").unlink()
    assert "no run of scifact in it" in llara(*call, "--run", runs, "--restart").error
    alone = llara(*call, "--run", runs / "cqadupstack-gis.run")
    assert alone.code == 2
    assert "the run of one data set" in alone.error


def test_flags_that_do_not_go_together(llara: Llara, folder: Path, tmp_path: Path) -> None:
    run, qrels = tmp_path / "run.trec", folder / "qrels/test.tsv"
    assert "exclude each other" in llara("evaluate", folder, "--run", run, *BM25).error
    assert "leave --qrels out" in llara("evaluate", folder, "--run", run, "--qrels", qrels).error
    assert "--run RUN needs --qrels QRELS or a benchmark" in llara("evaluate", "--run", run).error
    assert "--name is for --run" in llara("evaluate", folder, *BM25, "--name", "x").error
    assert "no such file" in llara("evaluate", folder, "--run", run).error
    assert "exclude each other" in llara("evaluate", folder, *BM25, "--json", "--format", "csv").error
    assert "unknown --format html" in llara("evaluate", folder, *BM25, "--format", "html").error


def test_a_killed_evaluation_repeats_nothing_that_was_done(tiny_model: Path, tmp_path: Path) -> None:
    """Three data sets under names of BEIR; killed when the first has its result."""
    names = ("fiqa", "nfcorpus", "scifact")
    for seed, name in enumerate(names):
        random_set(tmp_path / "root" / name, seed, documents=1500, queries=30)
    command = [
        sys.executable, "-m", "llara_cli", "evaluate", "beir", "--datasets", ",".join(names), "--data-root",
        str(tmp_path / "root"), "--model", str(tiny_model), "--json", "-w",
    ]  # fmt: skip
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    results = tmp_path / "ws/results/beir/tiny"
    first = results / "fiqa.json"
    with subprocess.Popen([*command, str(tmp_path / "ws")], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not first.exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (results / "scifact.json").exists()
    times = {path: path.stat().st_mtime_ns for path in results.iterdir() if path.stem == "fiqa"}
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("vectors-*.npy")}
    assert shards
    second = subprocess.run([*command, str(tmp_path / "ws")], capture_output=True, text=True, check=True)
    assert json.loads(second.stdout) == json.loads(whole.stdout)
    assert "fiqa.json has the results of fiqa already" in second.stderr
    assert "searching fiqa" not in second.stderr
    assert "searching scifact" in second.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    for name in names:
        mine, theirs = (saved(tmp_path / place, "beir", "tiny", name) for place in ("ws", "whole"))
        assert mine["per_query"] == theirs["per_query"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tiny_model: Path, tmp_path: Path) -> None:
    """Anonymous memory of a whole evaluation, for 2,000 and 20,000 texts."""
    peaks = []
    for documents in (2_000, 20_000):
        folder = random_set(tmp_path / str(documents), 0, documents=documents)
        command = [sys.executable, "-m", "llara_cli", "evaluate", str(folder), "--model", str(tiny_model), "-q", "-w"]
        peaks.append(_peak([*command, str(tmp_path / "ws")]))
    assert peaks[1] < 1.1 * peaks[0]


def _peak(command: list[str]) -> int:
    """Most anonymous memory of a process, in kB."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
            most = max([most, *(int(line.split()[1]) for line in lines)])
            time.sleep(0.02)
    assert process.returncode == 0
    return most


def test_dense_figures_are_those_of_a_search_by_hand(llara: Llara, folder: Path, tiny_model: Path) -> None:
    result = llara("evaluate", folder, "--model", tiny_model, "--json").json["datasets"]["small"]
    paths = [
        Path(llara("encode", folder, "--model", tiny_model, *more, "--json").json["path"])
        for more in ((), ("--as", "query"))
    ]
    corpus, queries = (np.load(path / "vectors-00000.npy") for path in paths)
    documents, asked = ((path / "ids.txt").read_text().split() for path in paths)
    run = {
        query: dict(zip(documents, map(float, row), strict=True))
        for query, row in zip(asked, queries @ corpus.T, strict=True)
    }
    by_hand = evaluate(read_qrels(folder / "qrels/test.tsv"), run).means
    assert {name: result[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-9)
