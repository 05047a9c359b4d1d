"""Whatever a text holds (control tokens, nothing, spaces), joint and separate passes agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_joint_pass import separate, slots_and_gradients, with_exact_norms
from tiny import ARCHITECTURES, make_tokenizer
from transformers import AutoModelForCausalLM

from llara_cli.core.errors import UserError
from llara_cli.model.batching import pack
from llara_cli.model.decoder import Decoder
from llara_cli.model.loading import quiet_transformers
from llara_cli.model.prompts import BRANCHES
from llara_cli.model.recipe import PAPER, RECIPES, RELEASED
from llara_cli.model.sequences import Tree
from llara_cli.model.tokenizer import TextTokenizer

SPECIAL = ["</s>", "<s>", "<s1>", "<s9>", "<pad>"]
texts = st.lists(
    st.one_of(st.just(""), st.just("   "), st.sampled_from(SPECIAL), st.text(max_size=20)).map(str),
    min_size=1,
    max_size=4,
).map(lambda parts: parts + [f"the sea {parts[0]} and {token}" for token in SPECIAL])


def tokenizer_for(recipe_name: str) -> TextTokenizer:
    """The tiny tokenizer with the recipe's tokens."""
    found = TextTokenizer(make_tokenizer())
    found.add_tokens(RECIPES[recipe_name].new_tokens)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=10, deadline=None)
@given(texts=texts)
def test_joint_equals_separate(architecture: str, recipe: str, texts: list[str]) -> None:
    tokenizer = tokenizer_for(recipe)
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture](vocab_size=len(tokenizer.hf))
    with quiet_transformers():
        model = Decoder(with_exact_norms(AutoModelForCausalLM.from_config(config)).double().eval())
    prompts = tokenizer.prompt_ids(RECIPES[recipe])
    branches = [prompts.prompts[branch] for branch in BRANCHES]
    trees = [Tree([*prompts.head, *ids], branches, prompts.slots) for ids in tokenizer.encode(texts, 40)]
    joint, gradients = slots_and_gradients(model, trees, pack([len(tree) for tree in trees], 128))
    alone, wanted = slots_and_gradients(model, separate(trees), None)
    torch.testing.assert_close(joint, alone, atol=1e-12, rtol=0)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-11)


@given(text=st.text(max_size=30), token=st.sampled_from(SPECIAL))
@settings(max_examples=50, deadline=None)
def test_control_tokens_in_a_text_are_plain(text: str, token: str) -> None:
    tokenizer = tokenizer_for("released")
    ids = tokenizer.encode([text + token])[0]
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.hf.decode(ids) == text + token


def test_prompts_of_a_byte_level_tokenizer_begin_with_a_space() -> None:
    tokenizer = TextTokenizer(make_tokenizer())
    prompt = tokenizer.prompt_ids(PAPER).prompts["self"]
    assert tokenizer.hf.decode(prompt[:-1]) == " The original sentence: "
    assert prompt[-1] == tokenizer.hf.eos_token_id


def test_slots_come_from_the_tokenizer_in_the_recipes_order() -> None:
    tokenizer = tokenizer_for("released")
    prompts = tokenizer.prompt_ids(RELEASED)
    tokens = tokenizer.hf.convert_ids_to_tokens(list(prompts.prompts["next"][-8:]))
    assert tokens == [f"<s{i}>" for i in range(9, 17)]


@pytest.mark.parametrize("start", [True, False])
def test_start_tokens_are_asked_of_the_tokenizer(start: bool) -> None:
    assert TextTokenizer(make_tokenizer(start)).start_ids == ([1] if start else [])


def test_a_length_without_room_for_a_text_is_refused() -> None:
    prompts = TextTokenizer(make_tokenizer()).prompt_ids(PAPER)
    need = prompts.overhead()
    assert prompts.text_limit(need + 1) == 1
    with pytest.raises(UserError, match=f"too short: the prompt alone needs {need}"):
        prompts.text_limit(need)
