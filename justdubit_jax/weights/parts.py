"""The models that a checkpoint holds: built by its config, and filled."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from justdubit_jax.errors import InputError
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from justdubit_jax.models.bandwidth import vocoder
from justdubit_jax.models.connector import ConnectorConfig, Connectors
from justdubit_jax.models.gemma import Gemma, GemmaConfig
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.models.video_vae import (
    VideoDecoder,
    VideoDecoderConfig,
    VideoEncoder,
    VideoEncoderConfig,
)
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint, Shapes
from justdubit_jax.weights.keys import Part
from justdubit_jax.weights.load import load_weights


def load_part(checkpoint: Checkpoint, part: keys.Part, dtype: DTypeLike) -> Any:
    model = build_part(part, checkpoint.config, checkpoint.shapes)
    return load_weights(checkpoint, part, model, dtype)


def build_part(part: Part, config: dict[str, Any], shapes: Shapes) -> Any:
    """The part's abstract model for a checkpoint's `config`; `shapes` tell what no key says."""
    return nnx.eval_shape(lambda: _BUILDERS[part.name](config, shapes))


def _connectors(config: dict[str, Any], shapes: Shapes) -> Connectors:
    widths = [shapes[key][1] for key in TEXT_PROJECTIONS if key in shapes]
    if not widths:
        raise InputError(f"checkpoint: {' or '.join(TEXT_PROJECTIONS)} is missing")
    return Connectors(ConnectorConfig.from_metadata(config, widths[0]))


# One of them is in every checkpoint: its second axis is the width of the text's hidden states.
TEXT_PROJECTIONS = (
    "text_embedding_projection.aggregate_embed.weight",
    "text_embedding_projection.video_aggregate_embed.weight",
)


_BUILDERS: dict[str, Callable[[dict[str, Any], Shapes], nnx.Module]] = {
    "transformer": lambda c, _: Transformer(TransformerConfig.from_metadata(c)),
    "connectors": _connectors,
    "video_encoder": lambda c, _: VideoEncoder(VideoEncoderConfig.from_metadata(c)),
    "video_decoder": lambda c, _: VideoDecoder(VideoDecoderConfig.from_metadata(c)),
    "audio_encoder": lambda c, _: AudioEncoder(AudioVAEConfig.from_metadata(c)),
    "audio_decoder": lambda c, _: AudioDecoder(AudioVAEConfig.from_metadata(c)),
    "vocoder": lambda c, _: vocoder(c),
    "gemma": lambda c, _: Gemma(GemmaConfig.from_folder_config(c)),
}
