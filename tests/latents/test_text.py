"""Prompts that the text encoder would cut: their end is what is to be said."""

import jax.numpy as jnp
import numpy as np
import pytest

from justdubit_jax.errors import InputError
from justdubit_jax.latents.text import PROMPT_TOKENS, cut_prompts, load_tokenizer, text_encoder
from justdubit_jax.weights.checkpoint import open_checkpoint

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


def test_prompts_of_a_batch_get_their_own_contexts(demo):
    checkpoint = open_checkpoint(demo / "assets/ltx-2-tiny.safetensors")
    encode = text_encoder(checkpoint, demo / "assets/gemma", jnp.float32)
    prompts = ["A face says: hello.", "Silence."]
    together, alone = encode(prompts), [encode([prompt])[0] for prompt in prompts]
    for both, one in zip(together, alone, strict=True):
        for got, want in zip(both, one, strict=True):
            # Of another batch: sums in another order, through a few layers.
            np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert np.abs(together[0][0] - together[1][0]).max() > 0.01
