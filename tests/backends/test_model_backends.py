"""The conformance suites on every encoder and training backend installed, tied and untied embeddings alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import encoder_suite, training_suite
from tiny import make_model
from tiny_sentences import KINDS, make_sentence_model

from llara_cli.core import registry
from llara_cli.core.errors import UserError
from llara_cli.model.backends import EncoderOptions
from llara_cli.model.source import ModelSource


class TestEncoders(encoder_suite.EncoderConformance):
    @pytest.fixture(scope="class", params=registry.names("encoder"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tiny_model: Path) -> encoder_suite.Case:
        return encoder_suite.Case(registry.load("encoder", request.param), ModelSource("tiny", str(tiny_model)))


class TestSentenceTransformers(encoder_suite.EncoderConformance):
    @pytest.fixture(scope="class", params=KINDS)
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> encoder_suite.Case:
        folder = make_sentence_model(tmp_path_factory.mktemp("sentences") / request.param, request.param)
        backend = registry.load("encoder", "sentence-transformers")
        return encoder_suite.Case(backend, ModelSource(request.param, str(folder)))


@pytest.fixture(scope="session", params=["llama", "qwen", "neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each architecture; Qwen's has tied embeddings."""
    return make_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


class TestTraining(training_suite.TrainingConformance):
    @pytest.fixture(scope="class", params=registry.names("training"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest, folder: Path) -> training_suite.Case:
        return training_suite.Case(registry.load("training", request.param), ModelSource("tiny", str(folder)))


@pytest.mark.parametrize(
    ("option", "message"), [({"query_length": 3}, "too short"), ({"passage_length": 999}, "positions")]
)
def test_lengths_that_do_not_fit(tiny_model: Path, option: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.load("encoder", "torch").load(ModelSource("tiny", str(tiny_model)), EncoderOptions(**option))
