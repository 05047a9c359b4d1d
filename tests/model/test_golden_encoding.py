"""Token ids, raw and normalized embeddings equal what the authors' own code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden as g
import numpy as np
import pytest
import torch

from llara_cli.core.protocols import Role
from llara_cli.model.encoder import Encoder, Sequencer, pool
from llara_cli.model.recipe import RELEASED
from llara_cli.model.sequences import place_in_rows

OVERHEAD: dict[Role, int] = {"query": 20, "passage": 21}


@pytest.fixture(scope="module")
def reference(golden: Path) -> Any:
    """Arrays of the authors' code."""
    return np.load(golden / "encode_reference.npz")


@pytest.mark.parametrize("batch_tokens", [64, 4096])
@pytest.mark.parametrize("limit", [512, 32])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_embeddings(golden: Path, reference: Any, role: Role, limit: int, batch_tokens: int) -> None:
    texts = json.loads((golden / "inputs" / "encode.json").read_text())["queries" if role == "query" else "passages"]
    decoder = g.fresh_model(golden)
    decoder.model.eval()
    sequencer = Sequencer(g.tokenizer(golden), RELEASED, {role: limit + OVERHEAD[role]})
    trees = sequencer.trees(texts, role).trees
    wanted = reference[f"{role}_ml{limit}/input_ids"], reference[f"{role}_ml{limit}/attention_mask"]
    assert [[*t.trunk, *t.branches[0]] for t in trees] == [
        ids[mask == 1].tolist() for ids, mask in zip(*wanted, strict=True)
    ]
    with torch.no_grad():
        raw = pool(decoder.slots(place_in_rows(trees)), RELEASED, normalize=False).numpy()
    np.testing.assert_allclose(raw, reference[f"{role}_ml{limit}/mean8"], atol=2e-5, rtol=0)
    vectors = Encoder(decoder, RELEASED, sequencer, batch_tokens).encode(texts, role).vectors
    np.testing.assert_allclose(vectors, reference[f"{role}_ml{limit}/normalized"], atol=2e-6, rtol=0)


def test_tokenizer_cases(golden: Path) -> None:
    """Leading spaces keep their piece, and special tokens inside a text are plain text."""
    cases = json.loads((golden / "tokenizer_cases.json").read_text())
    reference = cases["fast_officialstyle_tokenizer.json_tf4.41.0"]
    special = ("<s>", "</s>", "<unk>", *RELEASED.new_tokens)
    ours = g.tokenizer(golden)
    for text, ids in zip(cases["strings"], reference, strict=True):
        mine = ours.encode([text])[0]
        if any(token in text for token in special):
            assert not set(mine) & ours.special_ids
            assert ours.hf.decode(mine) == text
        else:
            assert mine == ids
