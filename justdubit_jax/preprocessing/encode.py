"""Rows to latents and masks on disk."""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from justdubit_jax.data.precomputed import TENSORS, remove, save
from justdubit_jax.data.rows import Row, without_llm_prefix
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.errors import InputError
from justdubit_jax.latents.audio import audio_encoder
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import video_encoder
from justdubit_jax.models.tokens import Layout
from justdubit_jax.preprocessing.buckets import Bucket
from justdubit_jax.preprocessing.load import Loaded, load_row
from justdubit_jax.weights.checkpoint import Checkpoint


def prepare_caption(caption: str, args: argparse.Namespace) -> str:
    """A caption as the text encoder gets it: cleaned, behind the trigger word."""
    if args.remove_llm_prefixes:
        caption = without_llm_prefix(caption)
    return f"{(args.lora_trigger or '').strip()} {caption}".strip()


def encode_clips(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    shapes: Sequence[Bucket],
    output: Path,
) -> Iterator[tuple[str, str | None]]:
    """Encode and write everything but the captions; yields each name with its failure, if any."""
    layout = checkpoint.layout
    tiling = default_tiling(layout) if args.vae_tiling else None
    encode_video = video_encoder(checkpoint, default_dtype(), tiling)
    encode_audio = audio_encoder(checkpoint) if args.with_audio else None
    rate = layout.sample_rate if args.with_audio else 0
    waiting: dict[Bucket, list[Loaded]] = defaultdict(list)

    def finish(group: list[Loaded]) -> Iterator[tuple[str, None]]:
        latents = encode_video([item.frames for item in group])
        references = [i.reference_frames for i in group if i.reference_frames is not None]
        reference_latents = encode_video(references) if references else [None] * len(group)
        for item, own, reference in zip(group, latents, reference_latents, strict=True):
            tensors = {"latents": own, "reference_latents": reference, "masks": item.mask}
            if encode_audio:
                sounds = (item.sound, item.reference_sound)
                encoded = [None if sound is None else encode_audio(sound) for sound in sounds]
                tensors |= dict(
                    zip(("audio_latents", "reference_audio_latents"), encoded, strict=True)
                )
            metadata = _metadata(item.bucket, item.fps, layout)
            for role, tensor in tensors.items():
                if tensor is not None:
                    named = {TENSORS[role][0]: tensor}
                    save(output, role, item.row.name, named, metadata)
            yield item.row.name, None

    for row in rows:
        remove(output, row.name)
        try:
            item = load_row(row, shapes, rate, layout)
        except InputError as error:
            yield row.name, str(error)
            continue
        group = waiting[item.bucket]
        group.append(item)
        if len(group) == args.batch_size:
            yield from finish(waiting.pop(item.bucket))
    for group in waiting.values():
        yield from finish(group)


def _metadata(bucket: Bucket, fps: Fraction, layout: Layout) -> dict[str, str]:
    frames, rows, columns = layout.grid(*bucket)
    return {
        "num_frames": str(frames),
        "height": str(rows),
        "width": str(columns),
        "fps": repr(float(fps)),
        "duration": repr(float(bucket.frames / fps)),
    }
