"""Steps of contrastive training with LoRA, 32 queries of 16 passages: ours, and sentence-transformers' cached loss.

Both adapt the same linear layers of the same weights with the same ranks, under the same temperature.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM  # noqa: F401  imported before the gate

from gpu.bench import Bench, options_of
from gpu.encoding import LENGTH, transformer_of
from gpu.models import passage_lengths, random_model, texts_of, tokenizer_of_words
from llara_cli.model.architecture import linear_layers
from llara_cli.model.backends import TrainingSetup
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Sequencer
from llara_cli.model.recipe import PAPER
from llara_cli.training.contrastive import ContrastiveObjective
from llara_cli.training.groups import Group, identity
from llara_cli.training.info_nce import ContrastiveLoss

QUERIES, PASSAGES, TOY_QUERIES, TOY_PASSAGES = 32, 16, 2, 3
TEMPERATURE, STEPS = 0.05, 3
MINI_BATCH = 32


class Batch:
    """Queries, each with its passages, the positive first."""

    def __init__(self, *, toy: bool) -> None:
        count, self.passages_each = (TOY_QUERIES, TOY_PASSAGES) if toy else (QUERIES, PASSAGES)
        short = np.clip(np.random.default_rng(4).poisson(10, count), 3, 40).tolist()
        self.queries = texts_of(short, 5)
        self.passages = texts_of(passage_lengths(count * self.passages_each, 3), 6)

    def groups(self) -> list[Group]:
        """As ours takes them."""
        found = []
        for number, query in enumerate(self.queries):
            passages = self.passages[number * self.passages_each : (number + 1) * self.passages_each]
            names = [identity(text, None) for text in passages]
            found.append(Group(query, passages, names, names[0]))
        return found

    def columns(self, end: str) -> list[list[str]]:
        """As sentence-transformers takes them: queries, positives, then each place's negatives, with their prompts."""
        query, passage = (f" {PAPER.prompts[PAPER.roles[role]].text}{end}" for role in ("query", "passage"))
        places = [self.passages[place :: self.passages_each] for place in range(self.passages_each)]
        return [[text + query for text in self.queries], *([text + passage for text in texts] for texts in places)]


def measure(
    bench: Bench, setting: str, step: Callable[[], float], weights: Sequence[torch.nn.Parameter], tokens: int
) -> None:
    """Median of some steps with clipping and AdamW, after one that compiles and fills caches."""
    optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0, fused=True)
    losses: list[float] = []

    def whole() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=not bench.toy):
            losses.append(step())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    bench.forget_peak()
    first = bench.seconds(whole)
    if bench.warm:
        return
    seconds = float(np.median([bench.seconds(whole) for _ in range(1 if bench.toy else STEPS)]))
    bench.record(
        setting, tokens_per_s=tokens / seconds, peak_gb=bench.peak_gb(), step_s=seconds, first_step_s=first,
        tokens=tokens, loss=losses[0],
    )  # fmt: skip


def ours(bench: Bench, options: argparse.Namespace) -> None:
    """The objective of ``llara finetune`` with the backend ``lora``."""
    from llara_backends import adapters

    setup = TrainingSetup(bench.dtype)
    model = random_model(bench.shape(options.shape), bench.dtype, bench.device)
    model = adapters.adapt(model, [], setup).get_base_model().train()
    decoder = Decoder(model)
    decoder.freeze_projection()
    if options.attention != "auto":
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=not bench.toy):
            decoder.use_attention(options.attention)
    if options.compile:
        bench.compile_layers(decoder)
    sequencer = Sequencer(tokenizer_of_words(), PAPER, {"query": 64, "passage": LENGTH})
    batch = Batch(toy=bench.toy)
    groups = batch.groups()
    trees = sequencer.trees(batch.queries, "query").trees + sequencer.trees(batch.passages, "passage").trees
    tokens = sum(map(len, trees))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    name = f"{options.shape}, llara, attention {options.attention}" + (", compile" if options.compile else "")
    for budget in (int(each) for each in options.budgets.split(",")):
        loss = ContrastiveLoss(TEMPERATURE, mask_false_negatives=False)
        objective = ContrastiveObjective(decoder, PAPER, sequencer, budget, loss)
        setting = f"{name}, {budget} tokens a forward"
        bench.attempt(setting, measure, bench, setting, lambda o=objective: o.backward(groups).loss, weights, tokens)


def theirs(bench: Bench, options: argparse.Namespace) -> None:
    """sentence-transformers' ``CachedMultipleNegativesRankingLoss``, by texts of a mini-batch, and by tokens too."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokenizer, shape = tokenizer_of_words(), bench.shape(options.shape)
    module = transformer_of(Transformer, shape, bench, tokenizer)
    model = SentenceTransformer(
        modules=[module, Pooling(shape.hidden_size, "lasttoken")], device=str(bench.device)
    ).train()
    weights = adapted(module.model)
    columns = Batch(toy=bench.toy).columns(tokenizer.hf.eos_token)
    for name, limits in ((f"{MINI_BATCH} texts", {}), ("16384 tokens", {"mini_batch_num_tokens": 16384})):
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=MINI_BATCH, **limits)
        tokens = int(sum(each["attention_mask"].sum() for each in features(model, columns)))
        setting = f"{options.shape}, sentence-transformers, mini-batches of {name}"
        bench.attempt(setting, measure, bench, setting, lambda of=loss: cached(of, model, columns), weights, tokens)


def features(model: Any, columns: Sequence[list[str]]) -> list[dict[str, Any]]:
    """What the loss is given, on the model's device; tokenized in every step, as ours is."""
    found = [model.preprocess(column) for column in columns]
    return [
        {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in each.items()}
        for each in found
    ]


def cached(loss: Any, model: Any, columns: Sequence[list[str]]) -> float:
    """The loss of a batch, its gradients taken."""
    value = loss(features(model, columns), None)
    value.backward()
    return float(value.detach())


def adapted(body: Any) -> list[torch.nn.Parameter]:
    """The weights of adapters, put on every linear layer of a body as ours are."""
    from peft import LoraConfig, inject_adapter_in_model

    chosen = TrainingSetup(torch.float32).adapter
    config = LoraConfig(
        r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, target_modules=list(linear_layers(body))
    )
    inject_adapter_in_model(config, body)
    for name, weight in body.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
    return [weight for weight in body.parameters() if weight.requires_grad]


def main() -> None:
    """Measure one system; a setting that cannot be had is a result."""
    parser = options_of(__doc__)
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--system", default="llara", choices=("llara", "sentence-transformers"))
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--budgets", default="16384", help="tokens of a forward of ours")
    options = parser.parse_args()
    with suppress(ImportError):  # slow: before the gate
        import peft  # noqa: F401

        if options.system == "sentence-transformers":
            import sentence_transformers.sentence_transformer.losses  # noqa: F401
    bench = Bench(options)
    system = ours if options.system == "llara" else theirs
    bench.attempt(f"{options.shape}, {options.system}", system, bench, options)


if __name__ == "__main__":
    main()
