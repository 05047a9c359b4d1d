"""What every encoder backend must do: subclass ``EncoderConformance`` and say which backend and model.

class TestMyEncoder(EncoderConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(MyEncoder, ModelSource("name", "folder"))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Role
from llara_cli.model.backends import EncoderBackend, EncoderOptions
from llara_cli.model.source import ModelSource

TEXTS = ["the sea", "", "bees dance where the flowers are", "word " * 400, "</s> is plain", "the sea", "ü 東京"]


@dataclass(frozen=True)
class Case:
    """A backend and a model that it can load."""

    backend: type[EncoderBackend]
    source: ModelSource


options = partial(EncoderOptions, note=lambda message: None)
"""A backend may have something to tell of a model: no check here is about what."""


class EncoderConformance:
    """The checks."""

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls, case: Case) -> EncoderBackend:
        """The loaded encoder, with small batches."""
        return case.backend.load(case.source, options(batch_tokens=512))

    @pytest.mark.parametrize("role", ["query", "passage"])
    def test_vectors_are_normalized_rows_of_float32(self, encoder: EncoderBackend, role: Role) -> None:
        found = encoder.encode(TEXTS, role)
        assert found.vectors.shape == (len(TEXTS), encoder.dim)
        assert found.vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
        assert (found.cut, found.empty) == (1, 1)
        assert found.tokens > 0

    def test_order_and_company_change_a_vector_by_float_noise_at_most(self, encoder: EncoderBackend) -> None:
        together = encoder.encode(TEXTS, "passage").vectors
        turned = encoder.encode(TEXTS[::-1], "passage").vectors[::-1]
        alone = np.concatenate([encoder.encode([text], "passage").vectors for text in TEXTS])
        np.testing.assert_allclose(turned, together, atol=2e-6)
        np.testing.assert_allclose(alone, together, atol=2e-6)

    def test_batch_size_changes_a_vector_by_float_noise_at_most(self, encoder: EncoderBackend, case: Case) -> None:
        small = case.backend.load(case.source, options(batch_tokens=1)).encode(TEXTS, "passage").vectors
        np.testing.assert_allclose(small, encoder.encode(TEXTS, "passage").vectors, atol=2e-6)

    def test_equal_calls_give_equal_bytes(self, encoder: EncoderBackend) -> None:
        one, two = (encoder.encode(TEXTS, "query").vectors for _ in range(2))
        assert one.tobytes() == two.tobytes()

    def test_different_texts_have_different_vectors(self, encoder: EncoderBackend) -> None:
        vectors = encoder.encode(TEXTS, "passage").vectors
        np.testing.assert_allclose(vectors[0], vectors[5], atol=2e-6)
        assert np.abs(vectors[0] - vectors[2]).max() > 1e-3

    def test_it_knows_its_width_and_length_without_the_weights(self, encoder: EncoderBackend, case: Case) -> None:
        facts = case.backend.facts(case.source)
        assert facts.dim == encoder.dim
        assert facts.parameters > 0
        length = case.backend.choose_length(case.source, None)
        assert length is None or case.backend.choose_length(case.source, length) == length
        assert case.backend.choose_length(case.source, 40) == 40

    def test_a_length_cuts_the_text_and_not_the_prompt(self, encoder: EncoderBackend, case: Case) -> None:
        short = case.backend.load(case.source, options(query_length=40, passage_length=60))
        queries, passages = short.encode(["word " * 50], "query"), short.encode(["word " * 50], "passage")
        assert (queries.cut, passages.cut) == (1, 1)
        assert 0 < queries.tokens < 40
        assert queries.tokens < passages.tokens < 60
        whole = encoder.encode(["word " * 50], "query")
        assert np.abs(whole.vectors - queries.vectors).max() > 1e-6

    def test_lengths_that_do_not_fit_are_refused(self, case: Case) -> None:
        with pytest.raises(UserError, match="positions"):
            case.backend.choose_length(case.source, 100_000)
        with pytest.raises(UserError, match="positions"):
            case.backend.load(case.source, options(passage_length=100_000))
        with pytest.raises(UserError, match="too short"):
            case.backend.load(case.source, options(query_length=1))

    def test_control_tokens_in_a_text_are_text(self, encoder: EncoderBackend) -> None:
        plain, control = (encoder.encode([text], "passage").tokens for text in ("", "</s>"))
        assert control - plain > 1

    def test_nothing_is_no_mistake(self, encoder: EncoderBackend) -> None:
        assert encoder.encode([], "passage").vectors.shape == (0, encoder.dim)

    def test_progress_counts_every_text(self, encoder: EncoderBackend) -> None:
        told: list[int] = []
        encoder.encode(TEXTS, "passage", told.append)
        assert sum(told) == len(TEXTS)
