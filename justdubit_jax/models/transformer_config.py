"""Sizes and constants of the transformer, from a checkpoint's `config` metadata."""

import dataclasses
from typing import Any, Literal

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import AttentionConfig

# Whose timesteps modulate the audio-video attention: the modality's own, per token (JustDubit's
# trainer and its released LoRA), the other modality's sigma (ltx-core 1.0.0 to 1.1.3), or the own
# for scale and shift and the other's for the gate (ltx-core >= 1.1.4).
CrossTimestep = Literal["own", "other", "other_gate"]


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One modality's half of the model."""

    attention: AttentionConfig
    context_dim: int  # of the text as it comes
    in_channels: int
    out_channels: int
    max_pos: tuple[float, ...]  # extent of each position axis: seconds, pixel rows, pixel columns

    @property
    def dim(self) -> int:
        return self.attention.width


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and constants, from the checkpoint's `config` metadata.

    `text_projection`: the text is projected to each stream's width here, not on the text's side
    (LTX-2.0). `text_modulation`: timesteps modulate the attention to the text, on both of its sides
    (LTX-2.3).
    """

    layers: int
    video: StreamConfig
    audio: StreamConfig
    text_projection: bool
    text_modulation: bool
    norm_eps: float
    rope_theta: float
    timestep_scale: float
    cross_gate_timestep_scale: float

    @property
    def modulation_rows(self) -> int:
        """Of a block and stream: shift, scale and gate of each of what is modulated."""
        return 9 if self.text_modulation else 6

    @property
    def cross_timestep(self) -> CrossTimestep:
        """The rule where nobody says another: JustDubit's for LTX-2.0, ltx-core's for LTX-2.3."""
        return "other_gate" if self.text_modulation else "own"

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
        get = section.get
        eps, gated = get("norm_eps", 1e-6), get("apply_gated_attention", False)
        text_projection = not get("caption_proj_before_connector", False)

        def text_channels(attention: AttentionConfig) -> int:
            return get("caption_channels", 3840) if text_projection else attention.width

        heads, head_dim = get("num_attention_heads", 32), get("attention_head_dim", 128)
        attention = AttentionConfig(heads, head_dim, gated, eps)
        video = StreamConfig(
            attention=attention,
            context_dim=text_channels(attention),
            in_channels=get("in_channels", 128),
            out_channels=get("out_channels", 128),
            max_pos=tuple(map(float, get("positional_embedding_max_pos", (20, 2048, 2048)))),
        )
        heads, head_dim = get("audio_num_attention_heads", 32), get("audio_attention_head_dim", 64)
        attention = AttentionConfig(heads, head_dim, gated, eps)
        audio = StreamConfig(
            attention=attention,
            context_dim=text_channels(attention),
            in_channels=get("audio_in_channels", 128),
            out_channels=get("audio_out_channels", 128),
            max_pos=tuple(map(float, get("audio_positional_embedding_max_pos", (20,)))),
        )
        _check_equal("cross_attention_dim", get("cross_attention_dim", 4096), video.dim)
        _check_equal("audio_cross_attention_dim", get("audio_cross_attention_dim", 2048), audio.dim)
        _check_equal("audio_num_attention_heads", heads, video.attention.heads)
        return cls(
            layers=get("num_layers", 48),
            video=video,
            audio=audio,
            text_projection=text_projection,
            text_modulation=get("cross_attention_adaln", False),
            norm_eps=eps,
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
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
    "only_cross_attention": False,
    "double_self_attention": False,
}


def _check_equal(key: str, got: int, want: int) -> None:
    if got != want:
        raise InputError(f"checkpoint config: transformer.{key} is {got}, expected {want}")
