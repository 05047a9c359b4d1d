"""What llara computes with a model is what the model computes by itself, whatever its architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import CAUSAL, REFUSED, VOCABULARY, make

from llara_cli.console import UserError
from llara_cli.model.backbone import Backbone
from llara_cli.model.layout import Tree, lay_out

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def trees(lengths: list[int]) -> list[Tree]:
    """Random texts of these lengths, each with a prompt of three tokens."""
    random = np.random.default_rng(3)
    return [Tree(random.integers(5, VOCABULARY, length), [random.integers(5, VOCABULARY, 3)]) for length in lengths]


@pytest.mark.parametrize("name", CAUSAL)
def test_hidden_states_are_the_models_own(name: str) -> None:
    model = make(name)
    backbone = Backbone(model)
    backbone.check(name)
    ids = trees([9])[0].trunk
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids.tolist()]), use_cache=False, output_hidden_states=True)
        found = backbone.hidden(lay_out([Tree(ids, [])]))
    assert found.shape == (9, backbone.dim)
    torch.testing.assert_close(found, wanted.hidden_states[-1][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, (_, _, why) in REFUSED.items()])
def test_a_model_that_is_no_causal_decoder_is_refused(name: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        Backbone(make(name)).check("somewhere")
    assert str(refused.value).startswith("somewhere: ")
    assert why in str(refused.value)
