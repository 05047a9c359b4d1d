"""The head's losses: chunks change nothing, gradients taken at once are autograd's, no whole logits are ever made."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from llara_cli.cpu import linear
from llara_cli.model.batching import Batching
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import add_new_tokens, load_causal_lm
from llara_cli.model.logits import Logits
from llara_cli.model.recipe import RELEASED
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training import projection
from llara_cli.training.engine import Engine
from llara_cli.training.losses import bag_of_tokens_loss, language_model_loss, pretext_losses
from llara_cli.training.pretext import Example, PretextObjective
from llara_cli.training.projection import HeadGradients
from llara_cli.training.targets import Targets

VOCABULARY, DIM, ROWS, SLOTS = 53, 8, 21, 3
SMALL = pytest.mark.usefixtures("small_chunks")


class Wrapped(nn.Module):
    """A head that is no ``nn.Linear``, as peft makes of one."""

    reads = 0

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.inner = head

    @property
    def weight(self) -> Tensor:
        self.reads += 1
        return self.inner.weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.inner(hidden)
        return logits


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.fixture(params=[VOCABULARY, 7, 13], ids=["whole", "narrow slices", "wide slices"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """About five rows of logits a chunk, of so many tokens at a time; narrower and wider than a hidden state."""
    monkeypatch.setattr(projection, "LOGITS_BYTES", 4 * VOCABULARY * 5)
    monkeypatch.setattr(projection, "ALIGNED", 1)
    monkeypatch.setattr(projection, "SLICE_BYTES", 4 * DIM * request.param)
    assert len(projection.slices(torch.empty(1, 1, DIM), VOCABULARY)) == -(-VOCABULARY // request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_head(bias: bool, wrapped: bool) -> tuple[nn.Module, nn.Linear]:
    """A head and the linear layer in it."""
    torch.manual_seed(0)
    linear = nn.Linear(DIM, VOCABULARY, bias=bias).double()
    return (Wrapped(linear) if wrapped else linear), linear


def gradients(total: Tensor, hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    """Of the hidden states and of the head."""
    hidden.grad = None
    head.zero_grad()
    (total * 1.7).backward()
    assert hidden.grad is not None
    return [hidden.grad.clone(), *(w.grad.clone() for w in head.parameters() if w.grad is not None)]


@SMALL
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_language_model_loss_is_cross_entropy(bias: bool, wrapped: bool) -> None:
    head, linear = make_head(bias, wrapped)
    hidden = draw(ROWS, DIM).requires_grad_()
    ids = torch.arange(ROWS) * 2
    total, summed = language_model_loss(head, hidden, ids, 0.3)
    wanted = functional.cross_entropy(linear(hidden), ids, reduction="sum")
    torch.testing.assert_close(summed, wanted.detach(), rtol=1e-12, atol=0)
    mine, theirs = gradients(total, hidden, linear), gradients(wanted * 0.3, hidden, linear)
    assert len(mine) == (3 if bias else 2)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@SMALL
@pytest.mark.parametrize("pool_slots", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_pretext_losses_are_the_formula(pool_slots: bool, wrapped: bool, bias: bool) -> None:
    head, linear = make_head(bias=bias, wrapped=wrapped)
    slots = draw(ROWS, SLOTS, DIM).requires_grad_()
    sets = [[(7 * row + k * k) % VOCABULARY for k in range(1 + row % 6)] for row in range(ROWS)]  # some tokens twice
    weights = torch.linspace(0.1, 2, ROWS, dtype=torch.float64)
    total, each = pretext_losses(head, slots, Targets(sets), weights, pool_slots=pool_slots)
    logits = linear(slots).amax(dim=1) if pool_slots else linear(slots[:, -1])
    by_hand = torch.stack([-logits[row].log_softmax(0)[ids].mean() for row, ids in enumerate(sets)])
    torch.testing.assert_close(each, by_hand.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(bag_of_tokens_loss(logits, Targets(sets)), by_hand, rtol=1e-12, atol=0)
    mine, theirs = gradients(total, slots, linear), gradients((by_hand * weights).sum(), slots, linear)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@SMALL
@pytest.mark.parametrize("pool_slots", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "logits", [Logits(scale=1 / 13), Logits(cap=0.7), Logits(input_scale=3.0, scale=1.5, cap=0.9)], ids=str
)
def test_what_a_model_does_to_its_logits_is_in_losses_and_gradients(
    logits: Logits, bias: bool, wrapped: bool, pool_slots: bool
) -> None:
    head, linear = make_head(bias=bias, wrapped=wrapped)
    slots = draw(ROWS, SLOTS, DIM).requires_grad_()
    made = linear(slots * logits.input_scale) * logits.scale
    made = made if logits.cap is None else logits.cap * torch.tanh(made / logits.cap)
    sets, weights = Targets([[row, 1, 1] for row in range(ROWS)]), torch.linspace(0.1, 2, ROWS, dtype=torch.float64)
    total, each = pretext_losses(head, slots, sets, weights, pool_slots=pool_slots, logits=logits)
    pooled = made.amax(dim=1) if pool_slots else made[:, -1]
    by_hand = torch.stack([-pooled[row].log_softmax(0)[[row, 1, 1]].mean() for row in range(ROWS)])
    ids = torch.arange(ROWS)
    lm, summed = language_model_loss(head, slots[:, 0], ids, 0.3, logits=logits)
    wanted = functional.cross_entropy(made[:, 0], ids, reduction="sum")
    torch.testing.assert_close(each, by_hand.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(summed, wanted.detach(), rtol=1e-12, atol=0)
    mine = gradients(total + lm, slots, linear)
    theirs = gradients((by_hand * weights).sum() + wanted * 0.3, slots, linear)
    assert len(mine) == len(theirs) == (3 if bias else 2)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@SMALL
def test_a_layer_in_front_of_the_head_gets_its_gradient() -> None:
    head, linear = make_head(bias=True, wrapped=False)
    layer = nn.Sequential(nn.Linear(DIM + 1, DIM), nn.GELU()).double()
    hidden = draw(ROWS, DIM + 1).requires_grad_()
    ids = torch.arange(ROWS)
    language_model_loss(head, hidden, ids, 0.3, logits=Logits(transform=layer))[0].backward()
    mine = [layer[0].weight.grad, hidden.grad]
    layer.zero_grad()
    hidden.grad = None
    (functional.cross_entropy(linear(layer(hidden)), ids, reduction="sum") * 0.3).backward()
    for ours, other in zip(mine, [layer[0].weight.grad, hidden.grad], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@SMALL
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias"), ("hidden",)], ids=" and ".join)
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen: tuple[str, ...]) -> None:
    head, linear = make_head(bias=True, wrapped=False)
    hidden = draw(ROWS, DIM).requires_grad_()
    parts = {"weight": linear.weight, "bias": linear.bias, "hidden": hidden}
    for name in frozen:
        parts[name].requires_grad_(False)
    ids = torch.arange(ROWS)
    language_model_loss(head, hidden, ids, 0.3)[0].backward()
    mine = {name: part.grad for name, part in parts.items()}
    for part in parts.values():
        part.grad = None
    (functional.cross_entropy(linear(hidden), ids, reduction="sum") * 0.3).backward()
    for name, part in parts.items():
        assert (mine[name] is None) == (part.grad is None) == (name in frozen)
        if name not in frozen:
            torch.testing.assert_close(mine[name], part.grad, rtol=1e-10, atol=1e-12)


@SMALL
def test_without_gradients_none_are_summed() -> None:
    head, _ = make_head(bias=True, wrapped=False)
    gathered = HeadGradients()
    with torch.no_grad():
        language_model_loss(head, draw(ROWS, DIM), torch.arange(ROWS), 0.3, gathered)
    assert not gathered.sums


@SMALL
@pytest.mark.parametrize("impossible", [slice(7, 8), slice(0, 13), slice(40, VOCABULARY)])
def test_tokens_that_cannot_be_are_no_hindrance(impossible: slice) -> None:
    """A bias of minus infinity: on a token at the edge of a slice, on a whole slice, on the last ones."""
    head, linear = make_head(bias=True, wrapped=False)
    with torch.no_grad():
        linear.bias[impossible] = -torch.inf
    hidden = draw(ROWS, DIM).requires_grad_()
    ids = torch.arange(ROWS) + 14
    total, summed = language_model_loss(head, hidden, ids, 0.3)
    wanted = functional.cross_entropy(linear(hidden), ids, reduction="sum")
    torch.testing.assert_close(summed, wanted.detach(), rtol=1e-12, atol=0)
    mine, theirs = gradients(total, hidden, linear), gradients(wanted * 0.3, hidden, linear)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@SMALL
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("target", [-1, -100, VOCABULARY])
def test_a_target_outside_the_vocabulary_is_refused(target: int, wrapped: bool) -> None:
    head, _ = make_head(bias=False, wrapped=wrapped)
    hidden = draw(ROWS, DIM)
    with pytest.raises(IndexError, match=f"a vocabulary of {VOCABULARY}"):
        language_model_loss(head, hidden, torch.tensor([target] * ROWS), 0.3)
    with pytest.raises(IndexError, match=f"a vocabulary of {VOCABULARY}"):
        pretext_losses(head, hidden[:, None], Targets([[1, target]] * ROWS), torch.ones(ROWS), pool_slots=False)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS + 1])
def test_every_row_has_targets_of_its_own(count: int, wrapped: bool) -> None:
    head, _ = make_head(bias=False, wrapped=wrapped)
    hidden = draw(ROWS, DIM)
    with pytest.raises(ValueError, match=f"targets of {count} .* for {ROWS}"):
        language_model_loss(head, hidden, torch.zeros(count, dtype=torch.int64), 0.3)
    with pytest.raises(ValueError, match=f"targets of {count} .* for {ROWS}"):
        pretext_losses(head, hidden[:, None], Targets([[1]] * count), torch.ones(ROWS), pool_slots=False)
    with pytest.raises(ValueError, match="without targets"):
        Targets([[1], []])


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_no_rows_the_loss_is_nothing(wrapped: bool) -> None:
    head, linear = make_head(bias=True, wrapped=wrapped)
    hidden = draw(0, DIM).requires_grad_()
    total, summed = language_model_loss(head, hidden, torch.zeros(0, dtype=torch.int64), 0.3)
    assert float(total.detach()) == float(summed) == 0
    assert all(not gradient.any() for gradient in gradients(total, hidden, linear))


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_slots_that_tie_one_gets_the_gradient(wrapped: bool) -> None:
    """As in the authors' code: an even split would be another gradient of the same loss."""
    head, _ = make_head(bias=False, wrapped=wrapped)
    slots = draw(ROWS, 1, DIM).expand(ROWS, SLOTS, DIM).clone().requires_grad_()
    pretext_losses(head, slots, Targets([[1]] * ROWS), torch.ones(ROWS).double(), pool_slots=True)[0].backward()
    assert slots.grad is not None
    assert (slots.grad.abs().sum(dim=(0, 2)) > 0).sum() == 1


def test_the_weight_of_a_wrapped_head_is_asked_for_once() -> None:
    """peft makes it anew each time, where it trains some of its rows."""
    head, _ = make_head(bias=False, wrapped=True)
    assert isinstance(head, Wrapped)
    language_model_loss(head, draw(ROWS, DIM), torch.arange(ROWS), 0.3)
    assert head.reads == 1


def test_weights_of_losses_are_constants() -> None:
    head, _ = make_head(bias=False, wrapped=False)
    weights = torch.ones(ROWS, requires_grad=True)
    with pytest.raises(ValueError, match="constants"):
        pretext_losses(head, draw(ROWS, 1, DIM), Targets([[1]] * ROWS), weights, pool_slots=False)


@pytest.mark.parametrize("retain", [False, True])
def test_gradients_are_handed_over_once(retain: bool) -> None:
    head, _ = make_head(bias=True, wrapped=False)
    hidden = draw(ROWS, DIM).requires_grad_()
    total, _ = language_model_loss(head, hidden, torch.arange(ROWS), 0.3)
    total.backward(retain_graph=retain)
    with pytest.raises(RuntimeError, match="passed on already"):
        total.backward()


def test_no_gradient_of_a_gradient_is_made_up() -> None:
    head, _ = make_head(bias=True, wrapped=False)
    head.requires_grad_(False)
    hidden = draw(ROWS, DIM).requires_grad_()
    total, _ = language_model_loss(head, hidden, torch.arange(ROWS), 0.3)
    (once,) = torch.autograd.grad(total.square(), [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@SMALL
@pytest.mark.parametrize("started", [False, True])
def test_the_head_gets_the_gradients_of_a_batch_with_its_last_forward(started: bool) -> None:
    """Three batches of two forwards of two losses each, also where nobody says that a batch begins."""
    head, linear = make_head(bias=True, wrapped=False)
    gathered = HeadGradients()
    for batch in range(3):
        if started:
            gathered.start()
        forwards = [draw(ROWS, DIM, seed=2 * batch + number).requires_grad_() for number in range(2)]
        ids, sets = torch.arange(ROWS), Targets([[row, 1] for row in range(ROWS)])
        weights = torch.full((ROWS,), 0.3, dtype=torch.float64)
        for hidden in forwards:
            gathered.last = hidden is forwards[-1]
            lm, _ = language_model_loss(head, hidden, ids, 0.7, gathered)
            pretext, _ = pretext_losses(head, hidden[:, None], sets, weights, pool_slots=False, gathered=gathered)
            (lm + pretext).mul(1.7).backward()
            assert (linear.weight.grad is not None) == gathered.last
        assert linear.weight.grad is not None
        assert linear.weight.grad.is_contiguous()
        mine = [weight.grad for weight in linear.parameters()] + [hidden.grad for hidden in forwards]
        again = [hidden.detach().requires_grad_() for hidden in forwards]
        linear.zero_grad()
        for hidden in again:
            logits = linear(hidden)
            lm = functional.cross_entropy(logits, ids, reduction="sum") * 0.7
            (lm + (bag_of_tokens_loss(logits, sets) * weights).sum()).mul(1.7).backward()
        theirs = [weight.grad for weight in linear.parameters()] + [hidden.grad for hidden in again]
        linear.zero_grad()
        for ours, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


def test_a_batch_that_was_given_up_leaves_nothing() -> None:
    head, linear = make_head(bias=True, wrapped=False)
    gathered, found = HeadGradients(), []
    for last in (False, True):
        gathered.start()
        gathered.last = last
        linear.zero_grad()
        language_model_loss(head, draw(ROWS, DIM).requires_grad_(), torch.arange(ROWS), 0.3, gathered)[0].backward()
        found.append(linear.weight.grad)
    alone = language_model_loss(head, draw(ROWS, DIM).requires_grad_(), torch.arange(ROWS), 0.3)[0]
    linear.zero_grad()
    alone.backward()
    assert found[0] is None
    assert torch.equal(found[1], linear.weight.grad)


def test_a_large_upstream_gradient_is_no_infinity_in_fp16() -> None:
    head = nn.Linear(DIM, VOCABULARY).half()
    hidden = draw(ROWS, DIM).half().requires_grad_()
    (language_model_loss(head, hidden, torch.arange(ROWS), 1e-3)[0] * 1e5).backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@SMALL
def test_losses_of_a_wrapped_head_in_bf16_are_float32() -> None:
    head, _ = make_head(bias=True, wrapped=True)
    head.bfloat16()
    sets, weights = Targets([[row, 1] for row in range(ROWS)]), torch.ones(ROWS)
    slots = draw(ROWS, SLOTS, DIM).bfloat16()
    for pool_slots in (False, True):
        total, each = pretext_losses(head, slots, sets, weights, pool_slots=pool_slots)
        assert total.dtype == each.dtype == torch.float32
        assert not torch.equal(each, each.bfloat16().float())
    total, summed = language_model_loss(head, slots[:, 0], torch.arange(ROWS), 0.3)
    torch.testing.assert_close(total, summed * 0.3)


@SMALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_a_head_in_bf16_are_summed_in_float32(dtype: torch.dtype) -> None:
    """And handed over in what the weight's gradients are kept in."""
    head, linear = make_head(bias=True, wrapped=False)
    rows = 4000  # in 800 chunks
    hidden, ids = draw(rows, DIM).bfloat16().requires_grad_(), torch.arange(rows) % VOCABULARY
    head.bfloat16()
    for weight in linear.parameters():
        weight.grad_dtype = dtype
    mine = gradients(language_model_loss(head, hidden, ids, 1.0)[0], hidden, linear)
    head.double()
    exact = hidden.detach().double().requires_grad_()
    theirs = gradients(functional.cross_entropy(linear(exact), ids, reduction="sum"), exact, linear)
    assert [each.dtype for each in mine] == [torch.bfloat16, dtype, dtype]
    assert dtype == torch.bfloat16 or not torch.equal(mine[1], mine[1].bfloat16().float())
    for ours, other in zip(mine, theirs, strict=True):
        assert (ours.double() - other).norm() < 1e-2 * other.norm()


@SMALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype: torch.dtype) -> None:
    head = nn.Linear(DIM, VOCABULARY, bias=False)
    hidden = draw(ROWS, DIM).float().requires_grad_()
    with torch.autocast("cpu", dtype):
        total, summed = language_model_loss(head, hidden, torch.arange(ROWS), 1.0)
    assert total.dtype == summed.dtype == torch.float32
    mine = gradients(total, hidden, head)
    wanted = functional.cross_entropy(head(hidden), torch.arange(ROWS), reduction="sum")
    assert float(summed) == pytest.approx(float(wanted.detach()), rel=1e-2)
    for ours, other in zip(mine, gradients(wanted, hidden, head), strict=True):
        assert (ours - other).norm() < 2e-2 * other.norm()


@SMALL
def test_no_tensor_holds_all_logits() -> None:
    head, _ = make_head(bias=False, wrapped=False)
    hidden = draw(200, DIM).requires_grad_()
    with Largest() as largest:
        language_model_loss(head, hidden, torch.arange(200) % VOCABULARY, 1.0)[0].backward()
        sets = Targets([[row % VOCABULARY, 1] for row in range(200)])
        pretext_losses(head, hidden[:, None], sets, torch.ones(200).double(), pool_slots=False)[0].backward()
    assert largest.numbers <= 200 * DIM < 200 * VOCABULARY


@SMALL
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pool_slots", [False, True])
def test_where_onednn_multiplies_one_chunk_of_logits_is_there_at_a_time(
    bias: bool, pool_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, made = 5 * VOCABULARY, list[weakref.ref[torch.UntypedStorage]]()

    def counted(values: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
        found = linear(values, weight, added)
        if weight.shape[1] == DIM:  # logits, not their gradients
            made.append(weakref.ref(found.untyped_storage()))
            there = (storage.nbytes() // 4 for reference in made if (storage := reference()) is not None)
            assert sum(there) <= most
        return found

    monkeypatch.setattr(projection, "linear", counted)
    head = nn.Linear(DIM, VOCABULARY, bias=bias)
    slots, sets = draw(ROWS, SLOTS, DIM).float().requires_grad_(), [[row, 2 * row] for row in range(ROWS)]
    total, _ = pretext_losses(head, slots, Targets(sets), torch.full((ROWS,), 0.3), pool_slots=pool_slots)
    mine = gradients(total, slots, head)
    logits = head(slots).amax(dim=1) if pool_slots else head(slots[:, -1])
    theirs = gradients(bag_of_tokens_loss(logits, Targets(sets)).sum() * 0.3, slots, head)
    used = slots if pool_slots else slots[:, -1:]
    assert len(made) == sum(len(projection.slices(used[p], VOCABULARY)) for p in projection.chunks(used, VOCABULARY))
    assert head.weight.grad is not None
    assert head.weight.grad.is_contiguous()
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("slots", "vocabulary", "device", "rows"),
    [(1, 32_000, "cpu", 524), (8, 32_000, "cpu", 65), (1, 32_000, "cuda", 8388), (8, 32_000, "cuda", 1048),
     (8, 10**9, "cuda", 1)],
)  # fmt: skip
def test_a_gpu_makes_its_logits_in_larger_chunks(slots: int, vocabulary: int, device: str, rows: int) -> None:
    """64 MiB on a CPU, a GiB on a GPU."""
    assert projection.chunk_rows(slots, vocabulary, torch.device(device)) == rows


def test_chunks_go_by_the_device_of_the_hidden_states() -> None:
    assert len(projection.chunks(torch.empty(1200, 8, 4), 32_000)) == 19
    assert len(projection.chunks(torch.empty(1200, 8, 4, device="meta"), 32_000)) == 2


class Scaled(Engine):
    """fp16's scale without a scaler."""

    scale = 65536.0


def test_small_weights_do_not_vanish_in_fp16(tiny_model: Path) -> None:
    """The scale goes in before gradients are taken: after, those of a large batch would be gone."""
    source = ModelSource("tiny", str(tiny_model))
    tokenizer = TextTokenizer.load(source).with_tokens(RELEASED.new_tokens)
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 300, 60) for _ in range(200)]
    examples = [Example(text, {"self": text[:9], "next": text[9:15]}) for text in texts]
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = load_causal_lm(source, torch.float32)
        add_new_tokens(model, TextTokenizer.load(source), RELEASED.new_tokens, 0)
        prompts = tokenizer.prompt_ids(RELEASED)
        objective = PretextObjective(Decoder(model), RELEASED, prompts, Batching("packed", 4096, 256))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            objective.backward(examples, Scaled())
        head = model.get_output_embeddings().weight.grad
        assert head is not None
        found[dtype] = head.double() / Scaled.scale
    error = (found[torch.float16] - found[torch.float32]).norm() / found[torch.float32].norm()
    assert error < 5e-3


def test_gradients_reach_the_head_though_the_last_forward_has_no_use_of_it(tiny_model: Path) -> None:
    source = ModelSource("tiny", str(tiny_model))
    tokenizer = TextTokenizer.load(source).with_tokens(RELEASED.new_tokens)
    draw = np.random.default_rng(0)
    texts = [*(draw.integers(5, 300, 40) for _ in range(3)), np.array([7])]
    examples = [Example(text, {"self": text[:9] if len(text) > 1 else [], "next": []}) for text in texts]
    norms = []
    for budget in (4096, 60):  # one forward; one a text, the shortest last
        model = load_causal_lm(source, torch.float32)
        add_new_tokens(model, TextTokenizer.load(source), RELEASED.new_tokens, 0)
        prompts = replace(tokenizer.prompt_ids(RELEASED), head=())
        PretextObjective(Decoder(model), RELEASED, prompts, Batching("bucketed", budget, 256)).backward(examples)
        gradient = model.get_output_embeddings().weight.grad
        assert gradient is not None
        norms.append(float(gradient.double().norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
