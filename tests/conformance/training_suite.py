"""What every training backend must do: subclass ``TrainingConformance`` and say which backend and model.

class TestMyTraining(TrainingConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(MyBackend, ModelSource("name", "folder"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llara_cli.model.backends import TrainingBackend, TrainingSetup
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.recipe import RELEASED
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Case:
    """A backend and a model without slot tokens that it can load."""

    backend: type[TrainingBackend]
    source: ModelSource


class TrainingConformance:
    """The checks."""

    def load(self, case: Case) -> tuple[TrainingBackend, PreTrainedModel, TextTokenizer]:
        """A fresh backend with the model, its slots added."""
        torch.manual_seed(0)
        backend, tokenizer = case.backend(), TextTokenizer.load(case.source)
        setup = TrainingSetup(torch.float32, RELEASED.new_tokens, seed=3)
        return backend, backend.load(case.source, tokenizer, setup), tokenizer

    def test_what_trains_is_fp32_and_something_trains(self, case: Case) -> None:
        _, model, _ = self.load(case)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert trained
        assert {weight.dtype for weight in trained} == {torch.float32}

    def test_new_tokens_train(self, case: Case) -> None:
        _, model, tokenizer = self.load(case)
        slots = torch.tensor([tokenizer.hf.convert_tokens_to_ids(list(RELEASED.new_tokens))])
        before = model.get_input_embeddings()(slots).detach().clone()
        optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1.0)
        model(slots).logits.square().sum().backward()
        optimizer.step()
        moved = (model.get_input_embeddings()(slots) - before).abs().amax(dim=-1)
        assert bool((moved > 0).all())

    def test_new_tokens_start_equal_for_an_equal_seed_and_differ_from_each_other(self, case: Case) -> None:
        rows = []
        for _ in range(2):
            _, model, tokenizer = self.load(case)
            slots = torch.tensor(tokenizer.hf.convert_tokens_to_ids(list(RELEASED.new_tokens)))
            rows.append(model.get_input_embeddings()(slots).detach())
        assert torch.equal(*rows)
        assert len(rows[0].unique(dim=0)) == len(RELEASED.new_tokens)

    def test_the_saved_checkpoint_is_the_trained_model(self, case: Case, tmp_path: Path) -> None:
        backend, model, tokenizer = self.load(case)
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn(weight.shape, generator=noise) * 0.02)
            ids = torch.arange(3, len(tokenizer.hf))[None, :200]
            wanted = model.eval()(ids).logits
            with quiet_transformers():
                backend.save(model, tmp_path, torch.float32)
                again = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True).eval()
            torch.testing.assert_close(again(ids).logits, wanted, atol=2e-5, rtol=1e-4)
        assert not list(tmp_path.rglob("*.bin"))
        assert not list(tmp_path.rglob("*.pt"))
