"""Passages to vectors: tokens a second, ours in some of its settings or sentence-transformers, on the same texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM  # noqa: F401  imported before the gate

from gpu.bench import Bench, options_of
from gpu.models import passage_lengths, random_model, save, texts_of, tokenizer_of_words
from gpu.shapes import Shape, encoding_flops
from llara_cli.core.protocols import Vectors
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.recipe import PAPER

Encode = Callable[[Sequence[str]], Vectors]
Make = Callable[[], Encode]
LENGTH = 512
TOY_TEXTS = 16


def parser() -> argparse.ArgumentParser:
    """What a stage of encoding may be."""
    options = options_of(__doc__)
    options.add_argument("--shape", default="135M")
    options.add_argument("--texts", type=int, default=4096)
    options.add_argument("--system", default="llara", choices=("llara", "sentence-transformers"))
    options.add_argument("--attention", default="auto")
    options.add_argument("--layout", default="auto")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--budgets", default="65536", help="tokens of a forward of ours")
    options.add_argument("--forward-tokens", default="", help="what a forward costs, in tokens, instead of the default")
    options.add_argument("--sizes", default="128,256,512", help="texts of a batch of sentence-transformers")
    return options


class Encoding:
    """The texts, a model, and the vectors that were found first."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench, self.options = bench, options
        self.shape = bench.shape(options.shape)
        self.tokenizer = tokenizer_of_words()
        self.sequencer = Sequencer(self.tokenizer, PAPER, {"passage": LENGTH})
        self.texts = texts_of(passage_lengths(TOY_TEXTS if bench.toy else options.texts), 1)
        self.lengths = [len(tree) for tree in self.sequencer.trees(self.texts, "passage").trees]
        self._vectors = bench.work / f"vectors-{options.shape}.npy"

    def ours(self) -> dict[str, Make]:
        """By setting: the engine of ``llara encode``."""
        options = self.options
        decoder = Decoder(random_model(self.shape, self.bench.dtype, self.bench.device).eval())
        if options.attention != "auto":
            decoder.use_attention(options.attention)
        if options.compile:
            self.bench.compile_layers(decoder)
        name = f"llara, attention {options.attention}, {options.layout}" + (", compile" if options.compile else "")
        ways: dict[str, Make] = {}
        for budget in numbers(options.budgets):
            ways[f"{name}, {budget} tokens a forward"] = partial(self._ours, decoder, budget)
            for cost in numbers(options.forward_tokens):
                each = f"{name}, {budget} tokens a forward, {cost} for one more"
                ways[each] = partial(self._ours, decoder, budget, cost)
        return ways

    def _ours(self, decoder: Decoder, budget: int, cost: int | None = None) -> Encode:
        """``cost``: what one more forward is taken to cost, in tokens, instead of what the device says."""
        encoder = Encoder(decoder, PAPER, self.sequencer, budget, self.options.layout, print)
        if cost is not None:
            encoder.batching = replace(encoder.batching, forward_tokens=cost)
        return lambda texts: encoder.encode(texts, "passage").vectors

    def theirs(self) -> dict[str, Make]:
        """By setting: sentence-transformers' ``encode`` of text and prompt as one; it sorts by length itself."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        bench = self.bench
        module = transformer_of(Transformer, self.shape, bench, self.tokenizer)
        pooling = Pooling(self.shape.hidden_size, "lasttoken")
        model = SentenceTransformer(modules=[module, pooling, Normalize()], device=str(bench.device))
        end = f" {PAPER.prompts['self'].text}{self.tokenizer.hf.eos_token}"

        def of(size: int) -> Encode:
            def encode(texts: Sequence[str]) -> Vectors:
                whole = [f"{PAPER.prefix}{text}{end}" for text in texts]
                found = model.encode(whole, batch_size=size, show_progress_bar=False, convert_to_numpy=True)
                return np.asarray(found, np.float32)

            return encode

        return {f"sentence-transformers, batches of {size}": partial(of, size) for size in numbers(self.options.sizes)}

    def measure(self, setting: str, make: Make) -> None:
        """Once to warm up, with all texts where that compiles, then timed; vectors are held against the first ones."""
        bench, encode = self.bench, make()
        bench.forget_peak()
        few = self.texts if self.options.compile else self.texts[: max(8, len(self.texts) // 8)]
        first = bench.seconds(lambda: encode(few))
        if bench.warm:
            return
        found: list[Vectors] = []
        seconds = bench.seconds(lambda: found.append(encode(self.texts)))
        flops = sum(length * encoding_flops(self.shape, length) for length in self.lengths)
        bench.record(
            setting, tokens_per_s=sum(self.lengths) / seconds, texts_per_s=len(self.texts) / seconds,
            **bench.utilisation(flops / seconds), peak_gb=bench.peak_gb(), seconds=seconds, first_s=first,
            texts=len(self.texts), mean_tokens=float(np.mean(self.lengths)), least_cosine=self._least_cosine(found[0]),
        )  # fmt: skip

    def _least_cosine(self, vectors: Vectors) -> float:
        """With the vectors of the first setting of this shape that was measured."""
        if not self._vectors.exists():
            np.save(self._vectors, vectors)
        return float((np.load(self._vectors) * vectors).sum(axis=1).min())


def transformer_of(kind: Any, shape: Shape, bench: Bench, tokenizer: Any) -> Any:
    """sentence-transformers' module around the body of the random model, with SDPA."""
    few = Shape(shape.vocab_size, 16, 16, 1, 1, 1)  # a small one is on the disk, for the tokenizer's sake
    small = random_model(few, torch.float32, torch.device("cpu"))
    folder = save(small, tokenizer, bench.work / f"{bench.stage}-small")
    module = kind(str(folder), max_seq_length=LENGTH, model_kwargs={"attn_implementation": "sdpa"})
    module.model = random_model(shape, bench.dtype, bench.device).model.eval()
    return module


def numbers(text: str) -> list[int]:
    """Between commas."""
    return [int(each) for each in text.split(",") if each]


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Every setting of a system."""
    encoding = Encoding(bench, options)
    for name, make in (encoding.ours() if options.system == "llara" else encoding.theirs()).items():
        setting = f"{options.shape}, {name}"
        if bench.left < 4:
            bench.record(setting, skipped="no time left")
        else:
            bench.attempt(setting, encoding.measure, setting, make)


def main() -> None:
    """Measure; a setting that cannot be had is a result."""
    options = parser().parse_args()
    if options.system == "sentence-transformers":
        with suppress(ImportError):  # slow: before the gate
            import sentence_transformers.sentence_transformer.modules  # noqa: F401
    bench = Bench(options)
    bench.attempt(f"{options.shape}, {options.system}, attention {options.attention}", run, bench, options)


if __name__ == "__main__":
    main()
