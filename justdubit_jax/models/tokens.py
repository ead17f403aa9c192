"""Latents as tokens: layout, counts, and where each token lies in the clip.

In LTX-2 a video latent [c, f, y, x] covers 8 frames (the first: 1) by 32 x 32 pixels; an audio
latent frame [c, m] covers 4 mel frames of 160 samples at 16 kHz. Both become tokens of 128
channels. Other families differ, so the sizes are a checkpoint's own: its Layout.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/{types,components/patchifiers}.py.
"""

import dataclasses
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.audio_vae import AudioVAEConfig
from justdubit_jax.models.mel import MelConfig
from justdubit_jax.models.video_vae import VideoDecoderConfig, VideoEncoderConfig

AnyFloat = Float[Array, "..."] | Float[np.ndarray, "..."]


def video_tokens(latents: AnyFloat) -> AnyFloat:
    """[b, c, f, y, x] -> [b, f*y*x, c]."""
    return rearrange(latents, "b c f y x -> b (f y x) c")


def video_latents(tokens: AnyFloat, grid: tuple[int, int, int]) -> AnyFloat:
    """[b, f*y*x, c] -> [b, c, f, y, x] for the latent grid (f, y, x)."""
    f, y, x = grid
    return rearrange(tokens, "b (f y x) c -> b c f y x", f=f, y=y, x=x)


def audio_tokens(latents: AnyFloat) -> AnyFloat:
    """[b, c, t, m] -> [b, t, c*m]."""
    return rearrange(latents, "b c t m -> b t (c m)")


def audio_latents(tokens: AnyFloat, channels: int) -> AnyFloat:
    """[b, t, c*m] -> [b, c, t, m]."""
    return rearrange(tokens, "b t (c m) -> b c t m", c=channels)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the codecs of a checkpoint cut pixels and sound into latents.

    A clip has k * frames_per_latent + 1 frames and k + 1 latent frames: the first is one frame
    long.
    """

    frames_per_latent: int
    pixels_per_latent: int  # rows, and columns
    video_channels: int
    audio_channels: int
    audio_bins: int  # of an audio latent
    sample_rate: int  # Hz of the sound that is encoded
    samples_per_mel: int
    mels_per_latent: int

    @classmethod
    def from_metadata(cls, config: dict[str, Any]) -> "Layout":
        """Of a checkpoint's `config`. Raises InputError for what its codecs do not support."""
        video = VideoEncoderConfig.from_metadata(config)
        audio = AudioVAEConfig.from_metadata(config)
        mel = MelConfig.from_metadata(config)
        frames, rows, columns = video.compression
        if (decoder := VideoDecoderConfig.from_metadata(config).compression) != video.compression:
            raise InputError(
                f"vae.decoder_blocks: got a scale of {decoder} frames, rows and columns, expected "
                f"the encoder's {video.compression}"
            )
        if rows != columns:
            raise InputError(
                f"vae.encoder_blocks: got {rows} rows by {columns} columns to a latent, expected "
                "as many"
            )
        return cls(
            frames_per_latent=frames,
            pixels_per_latent=rows,
            video_channels=video.latent_channels,
            audio_channels=audio.z_channels,
            audio_bins=mel.bins // audio.compression,
            sample_rate=mel.sample_rate,
            samples_per_mel=mel.hop,
            mels_per_latent=audio.compression,
        )

    def is_legal(self, frames: int) -> bool:
        """Whether a clip may have so many frames."""
        return frames > 0 and frames % self.frames_per_latent == 1 % self.frames_per_latent

    def legal_frames(self, frames: int) -> int:
        """The most frames that a clip of that many may keep."""
        return (frames - 1) // self.frames_per_latent * self.frames_per_latent + 1

    def video_latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of that many frames."""
        return (frames - 1) // self.frames_per_latent + 1

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip of a legal size."""
        pixels = self.pixels_per_latent
        return self.video_latent_frames(frames), height // pixels, width // pixels

    def audio_latent_frames(self, seconds: float) -> int:
        """Latent frames of a sound of that length; halves go to the even number."""
        return round(seconds * (self.sample_rate / self.samples_per_mel / self.mels_per_latent))

    def video_positions(self, grid: tuple[int, int, int], fps: float) -> Float[np.ndarray, "3 t 2"]:
        """(start, end) of every token of a latent grid (f, y, x): seconds, pixel rows, columns.

        float32, as everything that the rotary angles are made of: bfloat16 positions are off by up
        to a third of a frame at 121 frames.
        """
        starts = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"))
        bounds = np.stack([starts, starts + 1], -1).reshape(3, -1, 2)
        frames, pixels = self.frames_per_latent, self.pixels_per_latent
        scaled = bounds * np.array([frames, pixels, pixels])[:, None, None]
        scaled[0] = np.maximum(scaled[0] + 1 - frames, 0)
        positions = scaled.astype(np.float32)
        positions[0] /= np.float32(fps)
        return positions

    def audio_positions(self, frames: int) -> Float[np.ndarray, "1 t 2"]:
        """(start, end) in seconds of every audio token; the first covers one mel frame."""
        mels = self.mels_per_latent
        mel = np.maximum(np.arange(frames + 1, dtype=np.float32) * mels + 1 - mels, 0)
        seconds = mel * np.float32(self.samples_per_mel) / np.float32(self.sample_rate)
        return np.stack([seconds[:-1], seconds[1:]], -1)[None]
