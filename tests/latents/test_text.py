"""Prompts that the text encoder would cut: their end is what is to be said."""

import numpy as np
import pytest

from justdubit_jax.errors import InputError
from justdubit_jax.latents.text import PROMPT_TOKENS, cut_prompts, load_tokenizer

VOCABULARY = 10_000


def prompt_of(tokens: int) -> str:
    """A prompt of that many tokens, spaces around it: the toy's are letters, and a first one."""
    return f"  {'a' * (tokens - 1)} "


def test_a_prompt_that_fits_is_taken_whole(demo):
    prompt = prompt_of(PROMPT_TOKENS)
    ids, mask = load_tokenizer(demo / "assets/gemma", VOCABULARY)([prompt, "a"])
    assert ids.shape == mask.shape == (2, PROMPT_TOKENS) and ids.dtype == np.int32
    assert mask[0].all() and mask[1, -1] and not mask[1, 0]  # padded on the left
    assert cut_prompts(demo / "assets/gemma", [prompt]) == [None]


def test_a_longer_one_is_refused_with_what_would_be_lost(demo):
    prompt = prompt_of(PROMPT_TOKENS + 1)
    (reason,) = cut_prompts(demo / "assets/gemma", [prompt])
    assert "1025 tokens, the text encoder takes 1024: its last 0.1% would be lost" in str(reason)
    with pytest.raises(InputError, match="1025 tokens"):
        load_tokenizer(demo / "assets/gemma", VOCABULARY)(["a", prompt])


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a Gemma 3 folder"):
        cut_prompts(tmp_path, ["a"])
