"""Whether adaptation works: held-out EBAE and EBAR, and next-passage retrieval, before and after `llara pretrain`.

    python benchmarks/adaptation.py CORPUS MODEL [--steps 150] [--json FILE]

CORPUS: a folder of .jsonl[.gz] articles; the last of its files is held out. MODEL: what `llara pretrain --model` takes.
Beside the losses: those of a unigram model of the training articles on the same targets. Retrieval: the NEXT embedding
of a passage against the SELF embeddings of all held-out passages (its own among them); the answer is its successor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from texts import articles

from llara_cli.core.workspace import Workspace
from llara_cli.data.passages import split_document
from llara_cli.data.pretraining_corpus import ReadyRow, corpus_files
from llara_cli.model.batching import Batching
from llara_cli.model.decoder import ROW_TOKENS, Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.loading import load_causal_lm
from llara_cli.model.prompts import BRANCHES
from llara_cli.model.recipe import PAPER
from llara_cli.model.source import ModelSource, resolve
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.examples import ExampleBuilder
from llara_cli.training.pretext import Example, PretextObjective


def held_out_rows(tokenizer: TextTokenizer, corpus: Path, length: int, count: int) -> list[ReadyRow]:
    """``count`` passages with their successors: ten consecutive ones of each article that is long enough."""
    rows: list[ReadyRow] = []
    for text in articles(corpus):
        (document,) = tokenizer.encode_documents([text[: 20 * length * 5]])
        passages = split_document(document.text, document.ends, length - 20)
        if len(passages) > 11:
            rows += [ReadyRow(own, own, following, str(corpus)) for own, following in pairwise(passages[:11])]
        if len(rows) >= count:
            return rows[:count]
    raise SystemExit(f"{corpus}: fewer than {count} held-out passages")


def losses(source: ModelSource, tokenizer: TextTokenizer, examples: Sequence[Example]) -> dict[str, float]:
    """Mean EBAE and EBAR over the examples."""
    objective = PretextObjective(
        Decoder(load_causal_lm(source, torch.float32).eval()), PAPER, tokenizer.prompt_ids(PAPER),
        Batching("packed", 1024, ROW_TOKENS),
    )  # fmt: skip
    terms = objective.backward(examples)
    assert terms.ebae is not None
    assert terms.ebar is not None
    return {"ebae": terms.ebae, "ebar": terms.ebar}


def unigram_losses(counts: np.ndarray[Any, Any], examples: Sequence[Example]) -> dict[str, float]:
    """The same means under token frequencies, one added to each."""
    surprise = -np.log((counts + 1) / (counts.sum() + len(counts)))
    found = {}
    for name, branch in zip(("ebae", "ebar"), BRANCHES, strict=True):
        found[name] = float(np.mean([surprise[np.asarray(e.targets[branch])].mean() for e in examples]))
    return found


def reciprocal_ranks(source: ModelSource, tokenizer: TextTokenizer, rows: Sequence[ReadyRow], length: int) -> Any:
    """1 / rank of each passage's successor among all passages, 0 beyond rank 10."""
    sequencer = Sequencer(tokenizer, PAPER, {"query": length, "passage": length})
    encoder = Encoder(Decoder(load_causal_lm(source, torch.float32).eval()), PAPER, sequencer)
    pool = list(dict.fromkeys([row.input for row in rows] + [row.output_predict or "" for row in rows]))
    queries, passages = (
        encoder.encode([row.input for row in rows], "query").vectors,
        encoder.encode(pool, "passage").vectors,
    )
    scores = queries @ passages.T
    wanted = np.array([pool.index(row.output_predict or "") for row in rows])
    ranks = 1 + (scores > scores[np.arange(len(rows)), wanted][:, None]).sum(axis=1)
    return np.where(ranks <= 10, 1 / ranks, 0.0)


def pretrain(train: Sequence[Path], model: str, workspace: Path, steps: int, batch: int, length: int) -> float:
    """Run the program itself; seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "llara_cli", "pretrain", *map(str, train), "--model", model, "--name", "adapted",
               "--max-length", str(length), "--batch-size", str(batch), "--max-steps", str(steps),
               "-w", str(workspace)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main(
    corpus: Path,
    model: str,
    steps: int = 150,
    batch: int = 16,
    length: int = 128,
    count: int = 200,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, pretrain, measure again."""
    *train, held_out = corpus_files([str(corpus)])
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        before = resolve(model, workspace)
        tokenizer = TextTokenizer.load(before)
        rows = held_out_rows(tokenizer, held_out, length, count)
        examples = list(ExampleBuilder(tokenizer, PAPER, tokenizer.prompt_ids(PAPER), length).examples(iter(rows)))
        seconds = pretrain(train, model, workspace.root, steps, batch, length)
        after = resolve("adapted", workspace)
        ids = [i for text in articles(train[0]) for i in tokenizer.encode([text])[0]]
        counts = np.bincount(ids, minlength=int(max(map(max, (e.text for e in examples)))) + 1 + len(tokenizer.hf))
        ranks = [reciprocal_ranks(source, tokenizer, rows, length) for source in (before, after)]
        result = {
            "passages": count, "length": length, "steps": steps, "batch": batch, "minutes": round(seconds / 60, 1),
            "losses": {"before": losses(before, tokenizer, examples), "after": losses(after, tokenizer, examples),
                       "unigram": unigram_losses(counts[: len(tokenizer.hf)], examples)},
            "next_passage_mrr@10": {"before": float(ranks[0].mean()), "after": float(ranks[1].mean())},
            "paired_t_test_p": float(stats.ttest_rel(ranks[1], ranks[0]).pvalue),
            "wilcoxon_p": float(stats.wilcoxon(ranks[1], ranks[0], zero_method="zsplit").pvalue),
        }  # fmt: skip
    print(json.dumps(result, indent=1))
    if as_json is not None:
        as_json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
