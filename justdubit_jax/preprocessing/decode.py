"""Latents on disk back to clips and sounds, for a look and a listen."""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from rich.progress import Progress

from justdubit_jax.clips.write import write_video, write_wav
from justdubit_jax.data.precomputed import TENSORS, read
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.latents.audio import audio_decoder
from justdubit_jax.latents.shapes import Frames
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import video_decoder
from justdubit_jax.models.tokens import Layout
from justdubit_jax.weights.checkpoint import Checkpoint


def decode_all(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    output: Path,
    names: Sequence[str],
    progress: Progress,
) -> None:
    """Write latents and masks back as mp4 and wav beside the folders, for a look and a listen."""
    layout = checkpoint.layout
    decode_video = video_decoder(checkpoint, default_dtype(), default_tiling(layout))
    decode_audio, rate = audio_decoder(checkpoint) if args.with_audio else (None, 0)
    bar = progress.add_task("decoding", total=len(names))
    for name in names:
        for role, folder in (
            ("latents", "decoded_videos"),
            ("reference_latents", "decoded_reference_videos"),
            ("audio_latents", "decoded_audio"),
            ("reference_audio_latents", "decoded_reference_audio"),
            ("masks", "decoded_masks"),
        ):
            path = output / role / f"{name}.safetensors"
            if not path.exists():
                continue
            tensor, metadata = read(path, TENSORS[role][0])
            target = output / folder / name
            if role.endswith("audio_latents"):
                if decode_audio:
                    write_wav(target.with_name(target.name + ".wav"), decode_audio(tensor), rate)
                continue
            frames = (
                _mask_frames(tensor, checkpoint.layout) if role == "masks" else decode_video(tensor)
            )
            video = target.with_name(target.name + ".mp4")
            write_video(video, frames, Fraction(metadata["fps"]))
        progress.advance(bar)


def _mask_frames(mask: np.ndarray, layout: Layout) -> Frames:
    """A pooled mask as grey frames of the clip's size."""
    frames = np.concatenate([mask[:1], np.repeat(mask[1:], layout.frames_per_latent, 0)])
    pixels = np.kron(frames, np.ones((1, layout.pixels_per_latent, layout.pixels_per_latent)))
    return np.repeat((pixels * 255).round().astype(np.uint8)[..., None], 3, -1)
