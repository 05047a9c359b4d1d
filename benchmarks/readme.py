"""Write the figures of ``benchmarks/*.json`` into the README, between their markers.

    python benchmarks/readme.py [--check]

With ``--check`` nothing is written; the exit code is 1 where the README is behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def startup() -> str:
    """The table of ``startup.json``."""
    found = json.loads((HERE / "startup.json").read_text())
    return (
        "| `llara --help` | empty Typer app | median ratio |\n| ---: | ---: | ---: |\n"
        f"| {found['llara_ms']:.0f} ms | {found['empty_typer_ms']:.0f} ms | {found['ratio']:.2f} |"
    )


def pretrain() -> str:
    """The tables of ``pretrain.json``, one a processor."""
    found = json.loads((HERE / "pretrain.json").read_text())
    by_processor: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(found["speed"], key=lambda row: ("processor" not in row, row.get("rivals_keep_memory", False))):
        by_processor.setdefault(_measured_on(row), []).append(row)
    lines = []
    for where, rows in by_processor.items():
        lines += [f"{where}:", "", *_rates(rows), "", *_spread(rows)]
    eights = [_at_eight(row) for row in found["speed"]]
    best = " or ".join(sorted({row["chosen"]["authors"].split()[0] for row in found["speed"]}, key=int))
    memory = ", ".join(
        f"{row['model']}: {row['ratio']:.2f} ({row.get('processor', 'the older machine')})" for row in found["memory"]
    )
    lines += [
        "`at most`: what the ratio to the authors' way would be if ours took the time of the matrix products alone",
        "that the losses need, at the rate of a large square one (the shares of it are of `released` and of `paper`).",
        f"The authors' way is at its best with {best} texts a forward; with 8, ours was",
        f"{min(eights):.1f} to {max(eights):.1f} times faster (on the older machine of each the fastest trial).",
    ]
    return "\n".join(
        [*lines, "", f"Peak memory of a step on the same batch, as a share of the authors' way: {memory}."]
    )


def _spread(rows: list[dict[str, Any]]) -> list[str]:
    """What the ratio to the authors' way was from round to round, where the rounds are known."""
    each = {f"{row['model']} {row['texts']}": _by_round(row) for row in rows}
    told = "; ".join(f"{name} {min(ratios):.2f} to {max(ratios):.2f}" for name, ratios in each.items() if ratios)
    return [f"From round to round the ratio to the authors' way was {told}.", ""] if told else []


def _by_round(row: dict[str, Any]) -> list[float]:
    """The ratio to the authors' way of each round; of an earlier procedure there is none."""
    kept = row.get("seconds")
    return [a / b for a, b in zip(kept["authors"], kept["llara released"], strict=True)] if kept else []


def _measured_on(row: dict[str, Any]) -> str:
    """Processor, threads and rounds; rows of an earlier procedure do not tell."""
    if "processor" not in row:
        return f"An older machine, {row['threads']} threads, by earlier forms of the benchmark (3 or 5 rounds)"
    told = f"{row['processor']}, {row['threads']} threads, {len(row['seconds']['authors'])} rounds"
    return f"{told}, the rivals' allocator set as ours is" if row.get("rivals_keep_memory") else told


def _rates(rows: list[dict[str, Any]]) -> list[str]:
    """The table of some rows."""
    lines = [
        "| model | texts | the authors' way | at most | two passes | two passes, by length | share of matmul peak |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ratios = [f"{row['ratio'][rival]:.2f}" for rival in ("authors", "two passes", "two passes, by length")]
        ratios.insert(1, f"{row['ratio_at_peak']['authors']:.2f}")
        tokens, share = f"{row['texts']} ({row['mean_tokens']:.0f} tokens)", row["share_of_matmul_peak"]
        shares = f"{share['released']:.0%}, {share['paper']:.0%}"
        lines.append(f"| {row['model']} | {tokens} | {' | '.join(ratios)} | {shares} |")
    return lines


def _at_eight(row: dict[str, Any]) -> float:
    """Our best over the authors' way with eight texts a forward; of rows of an earlier procedure, by the trials."""
    if "authors, 8 texts" in row["ratio"]:
        return float(row["ratio"]["authors, 8 texts"])
    tried = row["tried_texts_per_second"]
    ours: float = max(tried["llara released"].values())
    return ours / float(tried["authors"]["8 texts"])


def adaptation() -> str:
    """The table of ``adaptation.json``."""
    found = json.loads((HERE / "adaptation.json").read_text())
    losses, ranks = found["losses"], found["next_passage_mrr@10"]
    rows = [
        f"| {name} | {losses[key]['ebae']:.2f} | {losses[key]['ebar']:.2f} | {shown} |"
        for name, key, shown in (
            ("before", "before", f"{ranks['before']:.3f}"),
            (f"after {found['steps']} steps of {found['batch']} texts", "after", f"{ranks['after']:.3f}"),
            ("unigram model", "unigram", ""),
        )
    ]
    head = ["| | EBAE | EBAR | next passage, MRR@10 |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *rows, "", f"Paired t-test of the reciprocal ranks: p = {found['paired_t_test_p']:.1g}."])


def finetune() -> str:
    """The table of ``finetune.json``: what was measured by turns, then the trials of one step."""
    found = json.loads((HERE / "finetune.json").read_text())
    rival, peak = "sentence-transformers", found["peak_memory"]
    chosen = str(found["settings"][rival])
    rows = {
        told: (found["ratio"][name], peak["llara"] / peak[name])
        for name, told in ((rival, f"Cached loss, mini-batches of {chosen}"), (f"{rival}, plain", "plain loss"))
    }
    mine = found["tried"]["llara"][str(found["settings"]["llara"])]
    for setting, theirs in found["tried"][rival].items():
        if setting not in (chosen, "0"):
            ratios = [mine[key] / theirs[key] for key in ("pairs_per_second", "peak_memory")]
            rows[f"Cached loss, mini-batches of {setting} (one step)"] = (ratios[0], ratios[1])
    lines = ["| sentence-transformers' trainer | pairs a second | peak memory |", "| --- | ---: | ---: |"]
    lines += [f"| {told} | {speed:.2f} | {memory:.2f} |" for told, (speed, memory) in rows.items()]
    cache = f"{found['grad_cache']['ratio']:.2f}"
    told = f"Peak memory of a tiny model at batch 1,024 with GradCache over that at batch 16: {cache}."
    return "\n".join([*lines, "", told])


POOLS = {"scifact": "SciFact", "squad": "SQuAD"}
SYSTEMS = {
    "plain": "as it is",
    "fine-tuned": "fine-tuned",
    "adapted": "adapted",
    "adapted, fine-tuned": "adapted, fine-tuned",
    "adapted, fine-tuned on mined negatives": "the same, on negatives mined by itself",
    "BM25": "BM25",
}
STEPS = {
    "fine-tuning": "fine-tuned - plain",
    "adapting before it": "adapted, fine-tuned - fine-tuned",
    "a mining round": "adapted, fine-tuned on mined negatives - adapted, fine-tuned",
}


def quality() -> str:
    """The table of ``quality.json``."""
    found = json.loads((HERE / "quality.json").read_text())
    sizes = [
        f"{name} ({size['documents']:,} passages, {size['queries']:,} queries)"
        for name, size in ((name, found["pools"][pool]) for pool, name in POOLS.items())
    ]
    lines = [f"| | {' | '.join(sizes)} |", "| --- | ---: | ---: |"]
    for system, name in (SYSTEMS | {"rival": found["rival"]}).items():
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in map(found['systems'][system].get, POOLS))} |")
    lines += ["", f"| what it brings | {' | '.join(POOLS.values())} |", "| --- | ---: | ---: |"]
    for name, key in STEPS.items():
        cells = (f"{test['difference']:+.3f} (p = {test['p']:.1g})" for test in map(found["tests"][key].get, POOLS))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    took = [f"{found['minutes'][name]['minutes']:.0f}" for name in ("adapted", "plain-ft")]
    steps = [found["minutes"][name]["steps"] for name in ("adapted", "plain-ft")]
    told = f"adapting took {took[0]} minutes ({steps[0]} steps), fine-tuning {took[1]} ({steps[1]} steps)"
    return "\n".join(
        [*lines, "", f"Paired t-tests, one training run each. Batches of {found['batch']}; {told}, on two CPU cores."]
    )


def encode() -> str:
    """The table of ``encode.json``."""
    found = json.loads((HERE / "encode.json").read_text())
    ratio = found["ratio"]
    return (
        "| texts | sentence-transformers | published snippet | share of matmul peak |\n| --- | ---: | ---: | ---: |\n"
        f"| {found['texts']} ({found['mean_tokens']:.0f} tokens) | {ratio['sentence-transformers']:.2f} "
        f"| {ratio['published snippet']:.2f} | {found['share_of_matmul_peak']:.0%} |"
    )


def index() -> str:
    """The table of ``index.json``."""
    kept = json.loads((HERE / "index.json").read_text())
    head = ["| index | build | search | recall@10 | bare |", "| --- | ---: | ---: | ---: | ---: |"]
    rows = [
        f"| {name} | {row['ratio']['build']:.2f} | {row['ratio']['search']:.2f} "
        f"| {row['recall@10']['llara']:.3f} | {row['recall@10']['bare']:.3f} |"
        for name, row in kept["found"].items()
    ]
    size = f"{kept['settings']['rows']:,} vectors of width {kept['settings']['dim']}"
    return "\n".join([*head, *rows, "", f"Seconds over the bare library's, {size}; recall of both."])


def memory() -> str:
    """The table of the ``memory.json`` files."""
    lines = ["| command | on | MB | on | MB | ratio |", "| --- | --- | ---: | --- | ---: | ---: |"]
    for command, name, unit in (
        ("pretrain", "memory", "MB of text"),
        ("encode", "encode_memory", "texts"),
        ("evaluate", "evaluate_memory", "texts"),
    ):
        found = json.loads((HERE / f"{name}.json").read_text())
        cells = " | ".join(f"{int(size):,} {unit} | {mb:.0f}" for size, mb in found["rss_anon_mb"].items())
        lines.append(f"| `{command}` | {cells} | {found['ratio']:.2f} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The README with every table as the JSON files have it."""
    tables = {
        maker.__name__: maker() for maker in (startup, pretrain, adaptation, finetune, quality, encode, index, memory)
    }
    for name, table in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?\n?(<!-- /{name} -->)", re.DOTALL)
        text = marked.sub(lambda match, table=table: match[1] + table + "\n" + match[2], text)
    return text


def main(check: Annotated[bool, typer.Option("--check")] = False) -> None:
    """Fill the README, or tell whether it is behind."""
    text = README.read_text(encoding="utf-8")
    if check:
        raise typer.Exit(int(filled(text) != text))
    README.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
