"""What training brings on two fixed pools: nDCG@10 of a model before and after, beside BM25 and a published model.

    python benchmarks/quality.py --model MODEL --wiki FOLDER --scifact FOLDER --squad FOLDER --rival FOLDER \\
        --workspace DIR [--json FILE]

Every stage is a `llara` command, so an interrupted run goes on where it was; the JSON file is written after each
system. The pools: SciFact's judged test documents and 500 others (seed 0); the paragraphs of SQuAD's test articles. The
training rows: all queries of SciFact's train split and as many of SQuAD's as asked for (seed 0), each with one hard
negative that BM25 finds. Systems: the model as it is; fine-tuned; adapted on WIKI; adapted and fine-tuned; the same on
negatives that it mined itself (one round). Significance: paired t-tests of the queries' nDCG@10, of one training run
each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy import stats

from llara_cli.core.workspace import Workspace
from llara_cli.data.runs import read_qrels
from llara_cli.evaluation.results import Results

METRIC = "nDCG@10"
OTHERS = 500
"""Documents of a pool or training corpus that nothing was judged relevant in."""
Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
    """A JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def subset(source: Path, target: Path, split: str, *, others: int, queries: int | None = None) -> dict[str, int]:
    """A folder in BEIR layout: (some) queries of one split, its judged documents and so many others; its counts."""
    draw = np.random.default_rng(0)
    qrels = read_qrels(source / "qrels" / f"{split}.tsv")
    names = sorted(qrels)
    if queries is not None and queries < len(names):
        names = sorted(draw.choice(names, queries, replace=False).tolist())
    judged = {document for name in names for document in qrels[name]}
    corpus = rows_of(source / "corpus.jsonl")
    rest = sorted(row["_id"] for row in corpus if row["_id"] not in judged)
    kept = judged | set(draw.choice(rest, min(others, len(rest)), replace=False).tolist())
    write_rows(target / "corpus.jsonl", (row for row in corpus if row["_id"] in kept))
    wanted = set(names)
    write_rows(target / "queries.jsonl", (row for row in rows_of(source / "queries.jsonl") if row["_id"] in wanted))
    lines = [f"{name}\t{document}\t{grade}" for name in names for document, grade in qrels[name].items()]
    (target / "qrels").mkdir(exist_ok=True)
    (target / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return {"documents": len(kept), "queries": len(names)}


class Stages:
    """Runs `llara` in one workspace and keeps what it found."""

    def __init__(self, workspace: Path, path: Path | None, length: int) -> None:
        self.workspace, self.path, self.length = workspace, path, length
        self.found: dict[str, Any] = {"systems": {}, "minutes": {}}

    def llara(self, *arguments: str) -> dict[str, Any]:
        """The JSON result of one command."""
        command = [sys.executable, "-m", "llara_cli", *arguments, "-w", str(self.workspace), "--json"]
        print("llara", *arguments, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def train(self, name: str, *arguments: str) -> None:
        """Train ``name``; its minutes are those of all its steps, at the rate of those that its last run took."""
        told = self.llara(*arguments, "--name", name)
        minutes = round(told["tokens"] / told["tokens_per_second"] / 60, 1)
        self.found["minutes"][name] = {"minutes": minutes, "steps": told["steps"]}
        self.keep()

    def score(self, system: str, model: str, pools: Sequence[Path], *arguments: str) -> None:
        """Means of ``model`` on every pool, and each query's value. BM25 reads whole texts."""
        if model != "bm25":
            arguments = ("--max-length", str(self.length), *arguments)
        found = {}
        for pool in pools:
            told = self.llara("evaluate", str(pool), "--model", model, *arguments)
            kept = Results(Workspace(self.workspace), told["benchmark"], told["model"]).load(pool.name)
            assert kept is not None
            found[pool.name] = {query: values[METRIC] for query, values in kept.per_query.items()}
            print(f"  {system} on {pool.name}: {kept.metrics[METRIC]:.4f}", flush=True)
        self.found["systems"][system] = found
        self.keep()

    def keep(self) -> None:
        """Write down what there is: means, and paired tests of each system against the one before it."""
        systems = self.found["systems"]
        means = {name: {pool: float(np.mean(list(each.values()))) for pool, each in pools.items()}
                 for name, pools in systems.items()}  # fmt: skip
        own = [name for name in systems if name not in ("BM25", "rival")]
        tuned = [name for name in own if name != "adapted"]
        tests = {f"{after} - {before}": compare(systems[before], systems[after])
                 for before, after in [*pairwise(tuned), *((own[0], name) for name in own[2:])]}  # fmt: skip
        result = {"metric": METRIC, "passage_tokens": self.length, **self.found, "systems": means, "tests": tests}
        if self.path is not None:
            self.path.write_text(json.dumps(result, indent=1) + "\n")


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Difference of the means and the paired t-test's p, pool by pool."""
    found = {}
    for pool, values in before.items():
        pairs = np.array([(value, after[pool][query]) for query, value in values.items()])
        p = float(stats.ttest_rel(pairs[:, 1], pairs[:, 0]).pvalue)
        found[pool] = {"difference": float((pairs[:, 1] - pairs[:, 0]).mean()), "p": p}
    return found


def main(
    model: Annotated[str, typer.Option(help="What is adapted and fine-tuned.")],
    wiki: Annotated[Path, typer.Option(help="Plain text to adapt on.")],
    scifact: Annotated[Path, typer.Option(help="In BEIR layout, with a train and a test split.")],
    squad: Annotated[Path, typer.Option(help="The same.")],
    rival: Annotated[str, typer.Option(help="A sentence-transformers model.")],
    workspace: Annotated[Path, typer.Option()],
    rival_name: Annotated[str, typer.Option(help="How the rival is called; else as its folder.")] = "",
    questions: Annotated[int, typer.Option(help="Of SQuAD's train split.")] = 800,
    steps: Annotated[int, typer.Option(help="Of fine-tuning, 16 queries each.")] = 40,
    adaptation_steps: Annotated[int, typer.Option(help="16 texts each.")] = 40,
    length: Annotated[int, typer.Option(help="Total tokens of a passage when it is encoded.")] = 128,
    learning_rate: float = 1e-3,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Write the pools and training rows, train and score every system."""
    stages = Stages(workspace, as_json, length)
    pools, trains = [workspace / "pools" / name for name in ("scifact", "squad")], []
    stages.found["pools"] = {}
    for pool, source, others, count in zip(pools, (scifact, squad), (OTHERS, 0), (None, questions), strict=True):
        stages.found["pools"][pool.name] = subset(source, pool, "test", others=others)
        train = workspace / "train" / pool.name
        stages.found["pools"][f"{pool.name} train"] = subset(source, train, "train", others=others, queries=count)
        trains.append(train)
    names = {"model": Path(model).name, "rival": rival_name or Path(rival).name}
    stages.found |= names | {"batch": 16, "learning_rate": learning_rate}
    stages.score("BM25", "bm25", pools)
    stages.score("rival", rival, pools, "--encoder", "sentence-transformers")
    lexical = mined(stages, trains, "bm25")
    options = ("--max-steps", str(steps), "--batch-size", "16", "--negatives", "1", "--passage-length", "96",
               "--query-length", "48", "--learning-rate", str(learning_rate), "--temperature", "0.02")  # fmt: skip
    stages.score("plain", model, pools)
    stages.train("plain-ft", "finetune", *lexical, "--model", model, *options)
    stages.score("fine-tuned", "plain-ft", pools)
    stages.train("adapted", "pretrain", str(wiki), "--model", model, "--max-steps", str(adaptation_steps),
                 "--batch-size", "16", "--max-length", "128")  # fmt: skip
    stages.train("adapted-ft", "finetune", *lexical, "--model", "adapted", *options)
    stages.score("adapted, fine-tuned", "adapted-ft", pools)
    stages.train("round", "finetune", *mined(stages, trains, "adapted-ft"), "--model", "adapted", *options)
    stages.score("adapted, fine-tuned on mined negatives", "round", pools)
    stages.score("adapted", "adapted", pools)


def mined(stages: Stages, trains: Sequence[Path], model: str) -> list[str]:
    """Training rows with one hard negative each, found by ``model``."""
    files = []
    for train in trains:
        target = train.parent / f"{train.name}-{model}.jsonl"
        length = () if model == "bm25" else ("--max-length", str(stages.length))
        stages.llara(
            "mine", str(train), "--corpus", str(train / "corpus.jsonl"), "--model", model, "--per-query", "1",
            "--depth", "20", *length, "--output", str(target),
        )  # fmt: skip
        files.append(str(target))
    return files


if __name__ == "__main__":
    typer.run(main)
