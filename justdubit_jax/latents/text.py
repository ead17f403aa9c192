"""Prompts to contexts: the tokenizer, Gemma and the connectors."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from justdubit_jax.errors import InputError
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint, open_gemma
from justdubit_jax.weights.load import load_weights
from justdubit_jax.weights.parts import build_part

PROMPT_TOKENS = 1024


def text_encoder(
    checkpoint: Checkpoint, gemma_folder: Path, dtype: DTypeLike
) -> Callable[[Sequence[str]], list[Contexts]]:
    """Prompts to (video context, audio context), [1024, d] each, behind the connectors.

    The padding of a prompt is filled with the connectors' registers, so all tokens count.
    """
    gemma_files = open_gemma(gemma_folder)
    gemma_model = build_part(keys.GEMMA, gemma_files.config, gemma_files.shapes)
    config = gemma_model.config
    connectors_model = build_part(keys.CONNECTORS, checkpoint.config, checkpoint.shapes)
    width = config.hidden_size * (len(config.sliding) + 1)
    if (wanted := connectors_model.text_width) != width:
        raise InputError(
            f"{gemma_folder}: hidden states are {config.hidden_size} x {len(config.sliding) + 1} "
            f"= {width} wide, the checkpoint's text projection takes {wanted}"
        )
    tokenize = load_tokenizer(gemma_folder, config.vocab_size)
    gemma = load_weights(gemma_files, keys.GEMMA, gemma_model, dtype)
    connectors = load_weights(checkpoint, keys.CONNECTORS, connectors_model, dtype)

    @nnx.jit
    def encode(gemma: Any, connectors: Any, ids: jax.Array, mask: jax.Array) -> Any:
        return connectors(gemma(ids, mask), mask)

    def run(prompts: Sequence[str]) -> list[Contexts]:
        ids, mask = tokenize(prompts)
        video, audio = encode(gemma, connectors, jnp.asarray(ids), jnp.asarray(mask))
        return list(zip(np.asarray(video), np.asarray(audio), strict=True))

    return run


def cut_prompts(gemma_folder: Path, prompts: Sequence[str]) -> list[str | None]:
    """For each prompt that the text encoder would cut, what is wrong with it."""
    open_gemma(gemma_folder)  # a folder that is another thing is said to be so
    tokenizer = _tokenizer(gemma_folder)
    return [_too_long(tokenizer, prompt) for prompt in prompts]


def load_tokenizer(
    folder: Path, vocab_size: int
) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Prompts to token ids and mask, int32 [b, 1024], stripped and padded on the left.

    Raises InputError for a prompt of more tokens: the words to say stand at its end.
    """
    tokenizer = _tokenizer(folder)
    if len(tokenizer) > vocab_size and max(tokenizer.get_vocab().values()) >= vocab_size:
        raise InputError(f"{folder}: tokenizer has ids beyond the model's {vocab_size} embeddings")

    def run(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        for prompt in prompts:
            if reason := _too_long(tokenizer, prompt):
                raise InputError(reason)
        encoded = tokenizer(
            [prompt.strip() for prompt in prompts], padding="max_length", max_length=PROMPT_TOKENS
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        return np.asarray(ids, np.int32), np.asarray(mask, np.int32)

    return run


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
    from transformers import AutoTokenizer  # takes seconds; only who reads prompts waits for it

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no tokenizer that transformers loads: {error}") from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _too_long(tokenizer: Any, prompt: str) -> str | None:
    count = len(tokenizer(prompt.strip(), verbose=False)["input_ids"])
    if count <= PROMPT_TOKENS:
        return None
    lost = (count - PROMPT_TOKENS) / count
    return (
        f"the text has {count} tokens, the text encoder takes {PROMPT_TOKENS}: its last "
        f"{lost:.1%} would be lost ({prompt[:40]!r}...)"
    )
