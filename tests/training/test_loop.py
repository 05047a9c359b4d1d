"""The loop: learning rates, the order of texts, NaN, what is shown and drawn."""

from __future__ import annotations

import json
from collections import Counter
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from program import Llara
from tiny import make_model
from torch._dynamo.utils import counters

from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Encoder
from llara_cli.training import trainable_model
from llara_cli.training.history import History, draw_curve
from llara_cli.training.schedule import Schedule, Share

SMALL = ("--max-length", 60, "--batch-size", 4, "--max-steps", 10, "--name", "m")


@given(items=st.integers(1, 50), batch=st.integers(1, 20), epochs=st.integers(1, 3), start=st.integers(0, 10))
def test_an_epoch_takes_every_text_once_and_resuming_takes_the_same(
    items: int, batch: int, epochs: int, start: int
) -> None:
    schedule = Schedule.of([Share(0, items)], batch_size=batch, epochs=epochs, seed=3)
    steps = list(schedule.batches())
    taken = Counter((epoch, number) for epoch, numbers in steps for number in numbers)
    assert taken == Counter({(epoch, number): 1 for epoch in range(epochs) for number in range(items)})
    assert list(schedule.batches(start)) == steps[start:]
    assert steps == list(schedule.batches())


def test_training_on_a_cpu_keeps_freed_memory(
    llara: Llara, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    calls: list[bool] = []
    monkeypatch.setattr(trainable_model, "keep_freed_memory", lambda: calls.append(True))
    llara("pretrain", corpus, "--model", tiny_model, *SMALL)
    assert calls == [True]


def test_rates_rise_linearly_and_fall_linearly(llara: Llara, corpus: Path, tiny_model: Path) -> None:
    flags = ("--learning-rate", 1e-3, "--warmup-ratio", 0.4, "--json")
    history = llara("pretrain", corpus, "--model", tiny_model, *SMALL, *flags).json["history"]
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([1e-3 * part for part in (0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
    assert [row["step"] for row in history] == list(range(1, 11))
    assert all(a["loss"] != b["loss"] for a, b in pairwise(history))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(
    llara: Llara,
    corpus: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update, calls = torch.optim.AdamW.step, []

    def spoil(self: Any, closure: Any = None) -> Any:
        calls.append(1)
        done = update(self, closure)
        if len(calls) == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    done = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--save-every", 3)
    assert done.code == 1
    assert "step 6: the loss is nan" in done.error
    assert "a checkpoint of step 3 is kept" in done.error
    folder = tmp_path / "ws/models/m"
    assert json.loads((folder / "checkpoint/step.json").read_text()) == {"step": 3}
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    again = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--save-every", 3, "--json")
    assert [row["step"] for row in again.json["history"]] == list(range(1, 11))


def test_the_curve_and_the_trackers_tell_the_history(
    llara: Llara,
    corpus: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--track", "tensorboard", "--json")
    history = done.json["history"]
    assert (tmp_path / "ws/models/m/loss.png").read_bytes().startswith(b"\x89PNG")
    events = event_accumulator.EventAccumulator(str(tmp_path / "ws/tracking/m/llara"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in history}, rel=1e-6)


def test_a_row_that_was_not_finished_is_forgotten(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    history = History(tmp_path, Accelerator(cpu=True))
    history.resume(2)
    assert history.rows == rows[:2]
    assert (tmp_path / "history.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])


def test_the_bar_tells_terms_and_rate(tmp_path: Path) -> None:
    row = {"step": 1, "loss": 3.0, "ebae": 1.0, "ebar": 2.0, "lm": None, "learning_rate": 0.1, "tokens": 50}
    with History(tmp_path, Accelerator(cpu=True)) as history:
        shown = history.add(row)
        small = history.add(row | {"loss": 0.03125, "ebae": None, "ebar": None})
    assert shown.startswith("loss 3.00 EBAE 1.00 EBAR 2.00")
    assert small.startswith("loss 0.0312 ")
    assert shown.endswith("tokens/s")
    assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0]) == row


def test_a_curve_of_one_step_can_be_drawn(tmp_path: Path) -> None:
    draw_curve([{"step": 1, "loss": 2.0, "ebae": 2.0, "ebar": None, "lm": None}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "flags",
    [("--gradient-checkpointing",), ("--layout", "bucketed"), ("--layout", "packed"), ("--micro-batch-tokens", 70),
     ("--attention", "varlen")],
    ids=lambda flags: flags[-1],
)  # fmt: skip
def test_how_it_is_computed_changes_no_loss(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    plain = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--json", workspace=tmp_path / "plain").json
    other = llara("pretrain", corpus, "--model", tiny_model, *SMALL, *flags, "--json").json
    for one, two in zip(plain["history"], other["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    manifest = json.loads((tmp_path / "ws/models/m/manifest.json").read_text())
    assert manifest["execution"].keys() == {
        "gradient_checkpointing", "compile", "micro_batch_tokens", "processes", "layout", "attention"
    }  # fmt: skip
    assert manifest["execution"]["attention"] == ("varlen" if "varlen" in flags else "dense")
    assert manifest["execution"]["gradient_checkpointing"] == ("--gradient-checkpointing" in flags)


def test_an_update_draws_the_same_whatever_the_forwards_drew(
    llara: Llara, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that share a batch draw other dropout; where they round weights at random, they must round alike."""
    model = make_model(tmp_path / "dropping")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    update, states = torch.optim.AdamW.step, []

    def note(self: Any, closure: Any = None) -> Any:
        states.append(torch.get_rng_state().numpy().tobytes())
        return update(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    for budget in (70, 1000):
        done = llara("pretrain", corpus, "--model", model, *SMALL, "--micro-batch-tokens", budget, "--restart")
        assert done.code == 0, done.err
    assert len(set(states[:10])) == 10
    assert states[:10] == states[10:]


# torch's own, as it compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_change_no_loss(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by a compiler that is done at once: torch's own takes minutes here."""
    monkeypatch.setattr(Decoder, "compile_layers", partialmethod(Decoder.compile_layers, backend="eager"))
    plain = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--json", workspace=tmp_path / "plain").json
    counters.clear()
    other = llara("pretrain", corpus, "--model", tiny_model, *SMALL, "--compile", "--json").json
    assert counters["stats"]["unique_graphs"] > 0
    for one, two in zip(plain["history"], other["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "flags", [("--layout", "long"), ("--attention", "fast"), ("--track", "paper"), ("--weights", "fp8")]
)
def test_unknown_choices_are_named(llara: Llara, corpus: Path, tiny_model: Path, flags: tuple[str, str]) -> None:
    done = llara("pretrain", corpus, "--model", tiny_model, *SMALL, *flags)
    assert done.code == 2
    assert flags[1] in done.error


@pytest.mark.parametrize("more", [("--max-steps", 1), ("--max-steps", 9, "--save-every", 1)], ids=["last", "saved"])
def test_weights_that_an_update_spoiled_are_neither_saved_nor_trained(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    """A finite gradient times such a rate is not."""
    flags = ("--max-length", 60, "--batch-size", 4, "--name", "m", "--learning-rate", 1e39, "--warmup-ratio", 0)
    done = llara("pretrain", corpus, "--model", tiny_model, *flags, *more)
    assert (done.code, done.out) == (1, "")
    assert "step 1: the update produced non-finite weights; there is no checkpoint yet" in done.error
    folder = tmp_path / "ws/models/m"
    assert not list(folder.rglob("*.safetensors"))
    assert not (folder / "manifest.json").exists()


def test_each_weight_is_checked_once_a_step(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step can be the last, be scored and be saved, all at once."""
    checked: Counter[int] = Counter()
    isfinite = torch.Tensor.isfinite

    def counting(weight: torch.Tensor) -> torch.Tensor:
        checked[weight.data_ptr()] += 1
        return isfinite(weight)

    monkeypatch.setattr(torch.Tensor, "isfinite", counting)
    flags = ("--backend", "full", "--batch-size", 2, "--negatives", 1, "--max-steps", 1, "--save-every", 1)
    done = llara("finetune", train, "--model", tiny_model, *flags, "--dev", beir, "--dev-every", 1)
    assert done.code == 0, done.err
    assert len(checked) > 10
    assert set(checked.values()) == {1}


def test_a_model_that_has_no_vectors_for_the_dev_set_has_failed(
    llara: Llara, train: Path, tiny_model: Path, beir: Path
) -> None:
    flags = ("--backend", "full", "--batch-size", 2, "--negatives", 1, "--learning-rate", 1e30, "--warmup-ratio", 0)
    done = llara("finetune", train, "--model", tiny_model, *flags, "--dev", beir, "--dev-every", 1)
    assert done.code == 1
    assert "vectors of the dev set are not finite" in done.error


def test_the_dev_set_is_encoded_in_forwards_of_the_training(
    llara: Llara, train: Path, tiny_model: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its gradients a card may have no room for larger ones."""
    encode, budgets = Encoder.encode, []

    def note(encoder: Encoder, *args: Any) -> Any:
        budgets.append(encoder.batching.budget)
        return encode(encoder, *args)

    monkeypatch.setattr(Encoder, "encode", note)
    flags = ("--backend", "full", "--batch-size", 2, "--negatives", 1, "--max-steps", 1, "--micro-batch-tokens", 90)
    done = llara("finetune", train, "--model", tiny_model, *flags, "--dev", beir)
    assert done.code == 0, done.err
    assert set(budgets) == {90}


@pytest.mark.parametrize("flags", [("--attention", "flex"), ("--compute", "float8")], ids=lambda flags: flags[1])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "plan"])
def test_what_a_cpu_cannot_compute_is_refused_before_the_corpus_is_read(
    llara: Llara, corpus: Path, tiny_model: Path, tmp_path: Path, flags: tuple[str, str], dry: tuple[str, ...]
) -> None:
    corpus.write_text("not JSON\n")
    done = llara("pretrain", corpus, "--model", tiny_model, *SMALL, *flags, *dry)
    assert (done.code, flags[0] in done.error) == (2, True)
    assert not (tmp_path / "ws/models").exists()


def test_encoding_refuses_attention_that_a_cpu_has_not(llara: Llara, corpus: Path, tiny_model: Path) -> None:
    corpus.write_text("not JSON\n")
    done = llara("encode", corpus, "--model", tiny_model, "--attention", "flex")
    assert (done.code, "--attention flex" in done.error) == (2, True)
