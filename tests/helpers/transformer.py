"""The golden transformers of two blocks, and what goes into them."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.golden import golden_checkpoint, load_golden

from justdubit_jax.models.transformer import Modality
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights
from justdubit_jax.weights.parts import build_part

# 30 x the reference's own float32 error, at least 2e-5 (the golden vectors' README).
LIMIT = 2e-5
REFERENCES = (12, 5)  # tokens of (video, audio)


@functools.cache
def model(file: str = "transformer_19b"):
    checkpoint = golden_checkpoint(file)
    abstract = build_part(keys.TRANSFORMER, checkpoint.config, checkpoint.shapes)
    return load_weights(checkpoint, keys.TRANSFORMER, abstract, jnp.float32)


run = nnx.jit(
    lambda model, *modalities, **options: model(*modalities, **options),
    static_argnames=("cross_timestep", "isolated", "execution"),
)


@functools.cache
def inputs(text_mask: bool = True, file: str = "transformer_19b"):
    tensors, _ = load_golden(file)

    def modality(name: str) -> Modality:
        x = {k.partition(f"input.{name}.")[2]: v for k, v in tensors.items()}
        lengths = x["context_mask"].sum(1).astype(np.int32)
        references = int((x["target"] == 0).sum())
        return Modality(
            latents=jnp.asarray(x["latent"]),
            positions=jnp.asarray(x["positions"]),
            context=jnp.asarray(x["context"]),
            sigma=jnp.asarray(x["sigma"]),
            clean_count=jnp.full(len(lengths), references, jnp.int32),
            context_len=jnp.asarray(lengths) if text_mask else None,
        )

    return modality("video"), modality("audio")
