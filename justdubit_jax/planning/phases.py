"""The other programs of a run, lowered for cards that are not there: shapes in place of weights."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.devices import sharding
from justdubit_jax.dubbing.sample import Conditions, compiled_loop
from justdubit_jax.latents.text import PROMPT_TOKENS
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import decoding, encoding, jitted
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.models.connector import ConnectorConfig, Connectors
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.sampling.loop import Conditioned
from justdubit_jax.training.prepare import Training
from justdubit_jax.validation.fixed_loss import FixedLoss
from justdubit_jax.validation.settings import Validation
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_gemma
from justdubit_jax.weights.load import abstract_weights
from justdubit_jax.weights.parts import build_part


class Work(NamedTuple):
    """What a phase's programs follow from."""

    training: Training
    validation: Validation
    shape: SampleShape
    metadata: Mapping[str, Any]  # the checkpoint's config
    gemma: Path | None  # its folder, for the text


Phase = Callable[[Work], jax.stages.Lowered]


def heldout(work: Work) -> jax.stages.Lowered:
    """The held-out loss of a sample at one sigma."""
    t = work.training
    loss = FixedLoss(t.objective, t.graphdef, t.layout, t.mesh)
    return loss.lower(_sampled_weights(t), work.shape)


def sample(work: Work, batched: bool = True) -> jax.stages.Lowered:
    """One step of sampling with the validation's guidance and, where it has images, first frame."""
    t, v = work.training, work.validation
    attend = t.objective.execution.attend
    settings = SamplingSettings(
        *v.guidance,
        isolate=t.objective.isolate,
        cross_timestep=t.objective.cross_timestep,
        dtype=t.objective.dtype,
        batched=batched,
        execution=sharding.execution(t.mesh, attend=attend),
    )
    settings.check(t.config.layers)
    conditions = _conditions(work)
    start = tuple(
        _struct((t.mesh.size, x.reference.shape[1] + x.noise.shape[1], x.noise.shape[2]), t.mesh)
        for x in conditions
    )
    levels = jax.ShapeDtypeStruct((2,), jnp.float32)
    loop: Any = compiled_loop(t.graphdef, settings, t.mesh)
    return loop.lower(_sampled_weights(t), conditions, start, levels)


def encode(work: Work) -> jax.stages.Lowered:
    """The video encoder on a clip of the sample's size, or on its largest tile."""
    frames, rows, columns = _tile(work)
    pixels = jax.ShapeDtypeStruct((1, frames, rows, columns, 3), jnp.uint8)
    return _codec(work, keys.VIDEO_ENCODER, encoding(_dtype(work)), pixels)


def decode(work: Work) -> jax.stages.Lowered:
    """The video decoder to a clip of the sample's size, or to its largest tile."""
    layout = work.training.layout
    grid = layout.grid(*_tile(work))
    channels = work.shape.video.channels
    latents = jax.ShapeDtypeStruct((1, channels, *grid), jnp.float32)
    return _codec(work, keys.VIDEO_DECODER, decoding(_dtype(work)), latents)


def text(work: Work) -> jax.stages.Lowered:
    """Gemma and the connectors on one prompt."""
    assert work.gemma is not None, "asked for where there is one"
    files = open_gemma(work.gemma)
    place = functools.partial(sharding.weight, work.training.mesh)
    dtype = _dtype(work)
    gemma_model = build_part(keys.GEMMA, files.config, files.shapes)
    config = gemma_model.config
    width = config.hidden_size * (len(config.sliding) + 1)
    connectors_config = ConnectorConfig.from_metadata(dict(work.metadata), text_width=width)
    models = (
        abstract_weights(keys.GEMMA, gemma_model, dtype, place),
        abstract_weights(
            keys.CONNECTORS, nnx.eval_shape(lambda: Connectors(connectors_config)), dtype, place
        ),
    )
    (gemma, gemma_weights), (connectors, connector_weights) = map(nnx.split, models)

    def run(gemma_weights: Any, connector_weights: Any, ids: Any, mask: Any) -> Any:
        hidden: Any = nnx.merge(gemma, gemma_weights)(ids, mask)
        return nnx.merge(connectors, connector_weights)(hidden, mask)

    tokens = jax.ShapeDtypeStruct((1, PROMPT_TOKENS), jnp.int32)
    return jax.jit(run).lower(gemma_weights, connector_weights, tokens, tokens)


PHASES: Mapping[str, Phase] = {
    "heldout": heldout,
    "sample": sample,
    "encode": encode,
    "decode": decode,
    "text": text,
}


def _dtype(work: Work) -> Any:
    return jnp.bfloat16


def _sampled_weights(training: Training) -> Weights:
    """The adapters as they are trained, beside the base."""
    shapes = training.abstract_state.adapters
    return Weights(shapes, training.abstract.frozen)


def _conditions(work: Work) -> Conditions:
    """What one sample a device is made from."""
    t, v = work.training, work.validation
    video, audio = work.shape.video, work.shape.audio
    guided = any(guidance.cfg != 1 for guidance in v.guidance)
    count = t.mesh.size
    given = work.shape.grid[1] * work.shape.grid[2] if v.images else 0

    def stream(of: Any, first: int) -> Conditioned:
        text = _struct((count, of.text, of.text_channels), t.mesh)
        return Conditioned(
            noise=_struct((count, of.target, of.channels), t.mesh),
            reference=_struct((count, of.reference, of.channels), t.mesh),
            positions=_struct((count, of.axes, of.tokens, 2), t.mesh),
            context=text,
            negative=text if guided else None,
            first_frame=_struct((count, first, of.channels), t.mesh) if first else None,
        )

    return stream(video, given), stream(audio, 0)


def _struct(shape: tuple[int, ...], mesh: Mesh) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.batch(mesh))


def _tile(work: Work) -> tuple[int, int, int]:
    """Frames, rows and columns of pixels that are coded at once."""
    layout, (frames, rows, columns) = work.training.layout, work.shape.grid
    tiling = default_tiling(layout)
    clip = 1 + layout.frames_per_latent * (frames - 1)
    per = layout.pixels_per_latent
    height, width = (min(count * per, tiling.pixels) for count in (rows, columns))
    return min(clip, tiling.frames), height, width


def _codec(work: Work, part: keys.Part, code: Any, value: Any) -> jax.stages.Lowered:
    place = functools.partial(sharding.weight, work.training.mesh)
    model = build_part(part, dict(work.metadata), {})
    run, weights = jitted(code, abstract_weights(part, model, _dtype(work), place))
    return run.lower(weights, value)
