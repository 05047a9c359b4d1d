"""The stages, in turns: those of one turn run at once, the turns one after the other, the most valuable first.

Limits are seconds from a stage's gate on, on a card; on a CPU toy sizes take less, but imports take longer.
"""

from __future__ import annotations

from dataclasses import replace

from gpu.schedule import Stage

TOY_LIMIT = 120
LARGE = ("--shape", "7B", "--tokens", "16384", "--steps", "2")
Turns = list[list[Stage]]


def stage(name: str, limit: float, module: str, *options: str, needs: float = 8) -> Stage:
    """A module of the kit with its options."""
    return Stage(name, ["-m", f"gpu.{module}", *options], limit, needs)


def warm_up(number: int, module: str, *options: str) -> Stage:
    """The same with models of one layer and nothing recorded: what it compiles is then found in the cache."""
    return stage(f"warm-up {number}", 90, module, *options, "--warm", needs=0)


FIRST = stage("card", 45, "card", needs=0)
TESTS = [stage("tests", 105, "project_tests", needs=0), stage("FSDP2", 85, "sharding", needs=0)]
WARM_UPS = [
    warm_up(number, *command)
    for number, command in enumerate(
        [
            ("attention",),
            ("pretraining", "--lengths", "full,mixed"),
            ("pretraining", "--compile"),
            ("pretraining", "--attention", "varlen", "--compile", "--budgets", "16384,32768"),
            ("pretraining", *LARGE, "--recompute"),
            ("pretraining", *LARGE, "--attention", "varlen", "--compile", "--budgets", "4096,6144"),
            ("pretraining", *LARGE, "--attention", "varlen", "--compile", "--recompute"),
            ("pretraining", *LARGE, "--attention", "varlen", "--compile", "--float8", "--budgets", "4096"),
            ("encoding", "--attention", "varlen", "--layout", "packed", "--compile", "--budgets", "32768,65536"),
            ("encoding", "--shape", "7B", "--attention", "varlen", "--layout", "packed", "--compile", "--budgets",
             "32768", "--texts", "1024"),
            ("finetuning", "--attention", "varlen", "--compile"),
        ]
    )
]  # fmt: skip
ONE_BY_ONE = [
    stage("attention", 24, "attention"),
    stage("pretrain 135M, default", 22, "pretraining", "--lengths", "full,mixed"),
    stage("pretrain 135M, varlen and compiled", 24, "pretraining", "--attention", "varlen", "--compile", "--budgets",
          "16384,32768", "--lengths", "full,mixed"),
    stage("pretrain 135M, authors", 16, "pretraining", "--system", "authors", "--lengths", "full,mixed"),
    stage("pretrain 135M, two passes", 16, "pretraining", "--system", "two passes", "--lengths", "full,mixed"),
    stage("pretrain 7B, default, recomputed", 32, "pretraining", *LARGE, "--recompute", needs=15),
    stage("pretrain 7B, varlen and compiled", 34, "pretraining", *LARGE, "--attention", "varlen", "--compile",
          "--budgets", "4096,6144", needs=12),
    stage("pretrain 7B, varlen, compiled, recomputed", 25, "pretraining", *LARGE, "--attention", "varlen", "--compile",
          "--recompute", needs=12),
    stage("pretrain 7B, varlen, compiled, half recomputed", 25, "pretraining", *LARGE, "--attention", "varlen",
          "--compile", "--recompute", "2", "--budgets", "8192", needs=12),
    stage("encode 135M, default", 25, "encoding", "--forward-tokens", "16,512,4096,16384"),
    stage("encode 135M, varlen and compiled", 20, "encoding", "--attention", "varlen", "--layout", "packed",
          "--compile", "--budgets", "32768,65536"),
    stage("encode 135M, sentence-transformers", 22, "encoding", "--system", "sentence-transformers"),
    stage("exact", 34, "searching", needs=15),
    stage("fine-tune 135M", 20, "finetuning", "--budgets", "16384,32768"),
    stage("fine-tune 135M, sentence-transformers", 20, "finetuning", "--system", "sentence-transformers"),
    stage("pretrain 7B, authors", 22, "pretraining", *LARGE, "--system", "authors", "--recompute", needs=14),
    stage("encode 7B, default", 30, "encoding", "--shape", "7B", "--texts", "1024", "--forward-tokens", "16,512",
          needs=12),
    stage("encode 7B, varlen and compiled", 25, "encoding", "--shape", "7B", "--texts", "1024", "--attention",
          "varlen", "--layout", "packed", "--compile", "--budgets", "32768", needs=14),
    stage("encode 7B, sentence-transformers", 28, "encoding", "--shape", "7B", "--texts", "1024", "--system",
          "sentence-transformers", "--sizes", "256,128", needs=14),
    stage("pretrain 135M, compiled", 18, "pretraining", "--compile"),
    stage("pretrain 135M, varlen", 14, "pretraining", "--attention", "varlen", "--lengths", "full,mixed"),
    stage("pretrain 7B, default", 20, "pretraining", *LARGE, "--budgets", "4096", needs=14),
    stage("fine-tune 135M, varlen and compiled", 20, "finetuning", "--attention", "varlen", "--compile"),
    stage("pretrain 7B, float8", 30, "pretraining", *LARGE, "--attention", "varlen", "--compile", "--float8",
          "--budgets", "4096", needs=18),
    stage("pretrain 7B, weights rounded", 45, "pretraining", *LARGE, "--rounding", "--recompute", needs=25),
    stage("pretrain 7B, QLoRA", 34, "pretraining", *LARGE, "--qlora", "--recompute", needs=22),
    stage("pretrain 1B, default", 18, "pretraining", "--shape", "1B", "--tokens", "32768"),
    stage("pretrain 1B, varlen and compiled", 28, "pretraining", "--shape", "1B", "--tokens", "32768", "--attention",
          "varlen", "--compile", needs=14),
]  # fmt: skip


def turns(device: str) -> Turns:
    """For a card; on a CPU without warm-ups, as nothing is compiled there."""
    together = TESTS if device == "cpu" else [*TESTS, *WARM_UPS]
    found: Turns = [[FIRST], together, *([each] for each in ONE_BY_ONE)]
    return [[_on(device, each) for each in turn] for turn in found]


def _on(device: str, each: Stage) -> Stage:
    limit = TOY_LIMIT if device == "cpu" else each.limit
    return replace(each, command=[*each.command, "--device", device], limit=limit)
