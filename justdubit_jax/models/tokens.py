"""Latents as tokens: layout, counts, and where each token lies in the clip.

A video latent [c, f, y, x] covers 8 frames (the first: 1) by 32 x 32 pixels; an audio latent frame
[c, m] covers 4 mel frames of 160 samples at 16 kHz. Both become tokens of 128 channels.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/{types,components/patchifiers}.py.
"""

import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

FRAMES_PER_LATENT = 8
PIXELS_PER_LATENT = 32
AUDIO_LATENTS_PER_SECOND = 16000 / 160 / 4

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


def video_latent_frames(frames: int) -> int:
    """Latent frames of a clip of 8k+1 frames."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def audio_latent_frames(seconds: float) -> int:
    """Latent frames of a sound of that length; halves go to the even number."""
    return round(seconds * AUDIO_LATENTS_PER_SECOND)


def video_positions(grid: tuple[int, int, int], fps: float) -> Float[np.ndarray, "3 t 2"]:
    """(start, end) of every token of a latent grid (f, y, x): seconds, pixel rows, pixel columns.

    The first latent frame is one frame long. float32, as everything that the rotary angles are
    made of: bfloat16 positions are off by up to a third of a frame at 121 frames.
    """
    starts = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"))
    bounds = np.stack([starts, starts + 1], -1).reshape(3, -1, 2)
    pixels = (
        bounds * np.array([FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT])[:, None, None]
    )
    pixels[0] = np.maximum(pixels[0] + 1 - FRAMES_PER_LATENT, 0)
    positions = pixels.astype(np.float32)
    positions[0] /= np.float32(fps)
    return positions


def audio_positions(frames: int) -> Float[np.ndarray, "1 t 2"]:
    """(start, end) in seconds of every audio token; the first covers one mel frame."""
    mel = np.maximum(np.arange(frames + 1, dtype=np.float32) * 4 + 1 - 4, 0)
    seconds = mel * np.float32(160) / np.float32(16000)
    return np.stack([seconds[:-1], seconds[1:]], -1)[None]
