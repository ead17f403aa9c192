"""Sizes and constants of the transformer, from a checkpoint's `config` metadata."""

import dataclasses
from typing import Any, Literal

from justdubit_jax.errors import InputError

# Whose timesteps modulate the audio-video attention: the modality's own, per token (JustDubit's
# trainer and its released LoRA), or the other modality's sigma (ltx-core >= 1.0.0).
CrossTimestep = Literal["own", "other"]


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One modality's half of the model."""

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    max_pos: tuple[float, ...]  # extent of each position axis: seconds, pixel rows, pixel columns

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and constants, from the checkpoint's `config` metadata."""

    layers: int
    video: StreamConfig
    audio: StreamConfig
    caption_channels: int
    norm_eps: float
    rope_theta: float
    timestep_scale: float
    cross_gate_timestep_scale: float

    @classmethod
    def from_metadata(cls, config: dict[str, Any]) -> "TransformerConfig":
        """Read the "transformer" section; absent keys take the reference's defaults.

        Raises InputError on a value that this model does not have.
        """
        section = config.get("transformer", {})
        for key, supported in _SUPPORTED.items():
            if section.get(key, supported) != supported:
                raise InputError(
                    f"checkpoint config: transformer.{key} is {section[key]!r}, "
                    f"expected {supported!r}"
                )
        for key in ("apply_gated_attention", "cross_attention_adaln"):
            if section.get(key):
                raise InputError(
                    f"checkpoint config: transformer.{key} is set: LTX-2.3 is not supported yet"
                )
        get = section.get
        video = StreamConfig(
            heads=get("num_attention_heads", 32),
            head_dim=get("attention_head_dim", 128),
            in_channels=get("in_channels", 128),
            out_channels=get("out_channels", 128),
            max_pos=tuple(map(float, get("positional_embedding_max_pos", (20, 2048, 2048)))),
        )
        audio = StreamConfig(
            heads=get("audio_num_attention_heads", 32),
            head_dim=get("audio_attention_head_dim", 64),
            in_channels=get("audio_in_channels", 128),
            out_channels=get("audio_out_channels", 128),
            max_pos=tuple(map(float, get("audio_positional_embedding_max_pos", (20,)))),
        )
        _check_equal("cross_attention_dim", get("cross_attention_dim", 4096), video.dim)
        _check_equal("audio_cross_attention_dim", get("audio_cross_attention_dim", 2048), audio.dim)
        _check_equal("audio_num_attention_heads", audio.heads, video.heads)
        return cls(
            layers=get("num_layers", 48),
            video=video,
            audio=audio,
            caption_channels=get("caption_channels", 3840),
            norm_eps=get("norm_eps", 1e-6),
            rope_theta=float(get("positional_embedding_theta", 10000)),
            timestep_scale=float(get("timestep_scale_multiplier", 1000)),
            cross_gate_timestep_scale=float(get("av_ca_timestep_scale_multiplier", 1)),
        )


_SUPPORTED = {
    "rope_type": "split",
    "frequencies_precision": "float64",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
    "cross_attention_norm": True,
    "share_ff": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "caption_proj_before_connector": False,
}


def _check_equal(key: str, got: int, want: int) -> None:
    if got != want:
        raise InputError(f"checkpoint config: transformer.{key} is {got}, expected {want}")
