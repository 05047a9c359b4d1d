"""Every path that only a GPU takes gives what the CPU gives; skipped where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, make_model
from torch import nn

from llara_cli.core import registry
from llara_cli.model.backends import TrainingSetup
from llara_cli.model.batching import Batching
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder, Sequencer
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.sequences import Tree, place_in_rows
from llara_cli.model.source import ModelSource
from llara_cli.model.to_device import to_device
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.model.varlen import attend, plan_of
from llara_cli.training.loop import autocast
from llara_cli.training.losses import language_model_loss
from llara_cli.training.pretext import Example, PretextObjective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A tiny Llama whose heads are wide enough for FlexAttention (16)."""
    return ModelSource("tiny", str(make_model(tmp_path_factory.mktemp("gpu") / "model", "wide")))


def examples(count: int) -> list[Example]:
    """Texts of all lengths."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 120, count)
    return [Example(draw.integers(5, 300, n), {"self": draw.integers(5, 300, 9), "next": [6, 7]}) for n in lengths]


def losses_and_norm(
    source: ModelSource, recipe: Recipe, device: str, batching: Batching, items: Sequence[Example],
    attention: str = "dense", dtype: torch.dtype = torch.float32, *, compiled: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """The batch's loss and the norm of its gradient, of weights in fp32."""
    decoder = Decoder(load_causal_lm(source, torch.float32).to(device).train())
    tokenizer = TextTokenizer.load(source).with_tokens(())
    prompts = tokenizer.prompt_ids(recipe)
    with autocast(decoder.device, dtype):
        decoder.use_attention(attention)
        if compiled:
            decoder.compile_layers()
        loss = PretextObjective(decoder, recipe, prompts, batching).backward(items).loss
    gradients = [weight.grad.double().norm() for weight in decoder.model.parameters() if weight.grad is not None]
    return loss, float(torch.stack(gradients).norm())


@pytest.mark.parametrize(
    ("batching", "attention"),
    [(Batching("packed", 2048, multiple=256), "flex"), (Batching("packed", 2048, 256), "dense"),
     (Batching("bucketed", 2048), "dense")],
)  # fmt: skip
def test_layouts_agree_with_the_cpu(source: ModelSource, batching: Batching, attention: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    items = examples(40)
    wanted = losses_and_norm(source, PAPER, "cpu", Batching("bucketed", 4096, 256), items)
    found = losses_and_norm(source, PAPER, "cuda", batching, items, attention)
    assert found == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("attention", ["varlen", "flex", "dense"])
def test_ways_to_attend_agree_in_bf16(source: ModelSource, attention: str, compiled: bool) -> None:
    """With the CPU in fp32, as far as bf16 allows."""
    wanted = losses_and_norm(source, PAPER, "cpu", Batching("bucketed", 4096, 256), examples(40))
    batching = Batching("packed", 2048, 256 if attention == "dense" else 2048, 256)
    found = losses_and_norm(source, PAPER, "cuda", batching, examples(40), attention, torch.bfloat16, compiled=compiled)
    assert found == pytest.approx(wanted, rel=3e-2)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "of_keys", "width"), [(9, 3, 64), (32, 4, 64), (8, 8, 128)])
def test_the_kernel_for_segments_gives_what_the_mask_gives(
    heads: int, of_keys: int, width: int, window: int | None
) -> None:
    """Forward and gradients against the stand-in in fp64: grouped heads, fewer queries than keys, windows, padding."""
    torch.manual_seed(0)
    trees = [Tree([5] * n, [[6] * 5, [7] * 7]) for n in (1, 17, 300, 64, 411)]
    token_rows = place_in_rows(trees, [[0, 1, 2, 3, 4]], 128)
    plan = plan_of(token_rows, torch.device("cuda"))
    shapes = [(token_rows.ids.size, count, width) for count in (heads, of_keys, of_keys)]
    leaves = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for shape in shapes]
    exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    upstream = torch.randn(shapes[0], device="cuda", dtype=torch.bfloat16)
    found = attend(*leaves, plan, None, window)
    wanted = attend(*exact, plan_of(token_rows, torch.device("cpu")), None, window)
    mine = [found, *torch.autograd.grad(found, leaves, upstream)]
    theirs = [wanted, *torch.autograd.grad(wanted, exact, upstream.double().cpu())]
    for one, other in zip(mine, theirs, strict=True):
        assert float((one.double().cpu() - other).detach().norm() / other.detach().norm()) < 2e-2


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_float8_is_near_bf16(source: ModelSource, compiled: bool) -> None:
    """Forwards of any number of tokens."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8")
    items, found = examples(40), []
    for float8 in (False, True):
        decoder = Decoder(load_causal_lm(source, torch.float32).to("cuda").train())
        if float8:
            decoder.multiply_in_float8()
        if compiled:
            decoder.compile_layers()
        prompts = TextTokenizer.load(source).with_tokens(()).prompt_ids(PAPER)
        objective = PretextObjective(decoder, PAPER, prompts, Batching("bucketed", 2048, 256))
        with torch.autocast("cuda", torch.bfloat16):
            found.append(objective.backward(items).loss)
    assert found[1] == pytest.approx(found[0], rel=5e-2)


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger_gives_our_language_model_loss() -> None:
    torch.manual_seed(0)
    head = nn.Linear(64, 1000, bias=False).cuda()
    hidden, ids = torch.randn(300, 64, device="cuda"), torch.randint(0, 1000, (300,), device="cuda")
    fused = language_model_loss(head, hidden.requires_grad_(), ids, 0.5)
    plain = language_model_loss(head.cpu(), hidden.detach().cpu(), ids.cpu(), 0.5)
    assert float(fused[0].detach()) == pytest.approx(float(plain[0].detach()), rel=1e-3)


@pytest.mark.parametrize("name", ["full", "lora", "qlora"])
def test_backends_train_in_bf16(source: ModelSource, name: str) -> None:
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    backend = registry.load("training", name)()
    tokenizer = TextTokenizer.load(source)
    model = backend.load(source, tokenizer, TrainingSetup(torch.bfloat16, RELEASED.new_tokens)).to("cuda").train()
    objective = PretextObjective(
        Decoder(model), RELEASED, tokenizer.prompt_ids(RELEASED), Batching("packed", 2048, 256)
    )
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            losses.append(objective.backward(examples(20)).loss)
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=lambda recipe: recipe.name)
def test_encoding_agrees_with_the_cpu(source: ModelSource, recipe: Recipe, layout: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    texts = [" ".join(TEXTS[: 1 + n % 4]) for n in range(60)]
    found = []
    for device in ("cpu", "cuda"):
        tokenizer = TextTokenizer.load(source)
        model = load_causal_lm(source, torch.float32)
        add_new_tokens(model, tokenizer, recipe.new_tokens, seed=0)
        decoder = Decoder(model.to(device).eval())
        sequencer = Sequencer(tokenizer, recipe, {"passage": 200})
        encoder = Encoder(decoder, recipe, sequencer, 2048, layout if device == "cuda" else "bucketed")
        found.append(encoder.encode(texts, "passage").vectors)
    np.testing.assert_allclose(found[1], found[0], atol=2e-4)


def test_encoding_backs_off_where_memory_is_short(source: ModelSource) -> None:
    """Room for a few forwards of a few hundred tokens, taken from the GPU for real."""
    decoder = Decoder(load_causal_lm(source, torch.float32).to("cuda").eval())
    sequencer = Sequencer(TextTokenizer.load(source), PAPER, {"passage": 200})
    texts = [" ".join(TEXTS) for _ in range(20_000)]
    heard: list[str] = []
    encoder = Encoder(decoder, PAPER, sequencer, 1 << 21, "bucketed", heard.append)
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        vectors = encoder.encode(texts, "passage").vectors
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert heard
    np.testing.assert_allclose(vectors, vectors[:1].repeat(len(texts), axis=0), atol=1e-4)


def test_a_plan_on_a_gpu(source: ModelSource, tmp_path: Path) -> None:
    from llara_cli import app

    corpus = tmp_path / "a.txt"
    corpus.write_text("The river rises in the hills above the town. " * 200)
    arguments = ["pretrain", str(corpus), "--model", source.location, "--max-length", "100", "--json"]
    assert app.run([*arguments, "--dry-run", "-w", str(tmp_path / "ws")]) == 0
    assert app.run([*arguments, "--max-steps", "3", "-w", str(tmp_path / "ws")]) == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_numbers_arrive_on_the_device(device: str) -> None:
    values = np.arange(12).reshape(3, 4)
    for given in (values, values[1:, :2], torch.from_numpy(values), np.zeros(0, np.int64)):
        found = to_device(given, torch.device(device))
        assert found.device.type == device
        np.testing.assert_array_equal(found.cpu().numpy(), np.asarray(given))


def test_more_forwards_wait_for_the_gpu_no_oftener(source: ModelSource) -> None:
    """Packed under a dense mask: nothing in the body is waited for."""
    decoder = Decoder(load_causal_lm(source, torch.float32).to("cuda").train())
    prompts = TextTokenizer.load(source).with_tokens(()).prompt_ids(PAPER)
    found = []
    for budget in (8192, 512):
        objective = PretextObjective(decoder, PAPER, prompts, Batching("packed", budget, 256))
        objective.backward(examples(40))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as waits:
                objective.backward(examples(40))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(len(waits))
    assert found[0] == found[1]
