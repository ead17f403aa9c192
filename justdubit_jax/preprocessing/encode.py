"""Rows to latents and masks on disk."""

import argparse
import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from justdubit_jax.data.index import Files, Index
from justdubit_jax.data.precomputed import TENSORS, metadata_of, save
from justdubit_jax.data.rows import Row, without_llm_prefix
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.errors import InputError
from justdubit_jax.latents.audio import audio_encoder
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import video_encoder
from justdubit_jax.models.tokens import Layout
from justdubit_jax.preprocessing.buckets import Bucket
from justdubit_jax.preprocessing.decisions import source_metadata
from justdubit_jax.preprocessing.load import Loaded, load_row
from justdubit_jax.weights.checkpoint import Checkpoint


def prepare_caption(caption: str, args: argparse.Namespace) -> str:
    """A caption as the text encoder gets it: cleaned, behind the trigger word."""
    if args.remove_llm_prefixes:
        caption = without_llm_prefix(caption)
    return f"{(args.lora_trigger or '').strip()} {caption}".strip()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a row: the shapes in its files so far, or why there are none."""

    row: Row
    files: Files
    reason: str = ""


def encode_clips(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    refused: Mapping[str, str],
    shapes: Sequence[Bucket],
    index: Index,
    read: Callable[[Loaded], None] = lambda item: None,
) -> Iterator[Outcome]:
    """Encode and write everything but the captions; `refused` rows, by name, fail as they say.

    `read` is called with every row that was read. Whatever a row's files raise, while they are
    read, encoded or written, costs that row alone.
    """
    layout = checkpoint.layout
    tiling = default_tiling(layout) if args.vae_tiling else None
    encode_video = video_encoder(checkpoint, default_dtype(), tiling)
    encode_audio = audio_encoder(checkpoint) if args.with_audio else None
    rate = layout.sample_rate if args.with_audio else 0
    waiting: dict[Bucket, list[Loaded]] = defaultdict(list)

    def encode(group: Sequence[Loaded]) -> list[dict[str, np.ndarray]]:
        """The tensors of each by role."""
        latents = encode_video([item.frames for item in group])
        references = [i.reference_frames for i in group if i.reference_frames is not None]
        reference_latents = encode_video(references) if references else [None] * len(group)
        made = []
        for item, own, reference in zip(group, latents, reference_latents, strict=True):
            tensors = {"latents": own, "reference_latents": reference, "masks": item.mask}
            if encode_audio:
                sounds = (item.sound, item.reference_sound)
                encoded = [None if sound is None else encode_audio(sound) for sound in sounds]
                tensors |= dict(
                    zip(("audio_latents", "reference_audio_latents"), encoded, strict=True)
                )
            made.append({role: x for role, x in tensors.items() if x is not None})
        return made

    def write(item: Loaded, tensors: Mapping[str, np.ndarray]) -> Outcome:
        metadata = _metadata(item.bucket, item.fps, layout)
        files = {}
        for role, tensor in tensors.items():
            own, named = metadata | source_metadata(item, role), {TENSORS[role][0]: tensor}
            files[role] = save(index.folder, role, item.row.name, named, own)
        return Outcome(item.row, files)

    for row in rows:
        try:
            index.remove(row.name)
            if row.name in refused:
                raise InputError(refused[row.name])
            item = load_row(row, shapes, rate, layout, args.frame_rate, args.strict_rate)
        except Exception as error:
            yield _failed(row, error, index)
            continue
        read(item)
        group = waiting[item.bucket]
        group.append(item)
        if len(group) == args.batch_size:
            yield from each_of_group(waiting.pop(item.bucket), encode, write, _row_of, index)
    for group in waiting.values():
        yield from each_of_group(group, encode, write, _row_of, index)


def encode_captions(
    args: argparse.Namespace,
    encode: Callable[[Sequence[str]], list[Contexts]],
    clips: Sequence[Outcome],
    index: Index,
) -> Iterator[Outcome]:
    """Encode and write the captions of rows whose clips are done; a bad one costs its row."""

    def contexts(group: Sequence[Outcome]) -> list[Contexts]:
        return encode([prepare_caption(clip.row.caption, args) for clip in group])

    def write(clip: Outcome, made: Contexts) -> Outcome:
        name = clip.row.name
        tensors = dict(zip(TENSORS["conditions"], made, strict=True))
        shapes = save(index.folder, "conditions", name, tensors, metadata_of(index.folder, name))
        return Outcome(clip.row, {**clip.files, "conditions": shapes})

    for group in itertools.batched(clips, args.batch_size):
        yield from each_of_group(group, contexts, write, lambda clip: clip.row, index)


def each_of_group[Item, Made](
    group: Sequence[Item],
    encode: Callable[[Sequence[Item]], Sequence[Made]],
    write: Callable[[Item, Made], Outcome],
    row_of: Callable[[Item], Row],
    index: Index,
) -> Iterator[Outcome]:
    """A group encoded at once, then written; where that fails, one by one."""
    try:
        made = encode(group)
    except Exception as error:
        if len(group) == 1:
            yield _failed(row_of(group[0]), error, index)
            return
        for item in group:
            yield from each_of_group([item], encode, write, row_of, index)
        return
    for item, own in zip(group, made, strict=True):
        try:
            outcome = write(item, own)
        except Exception as error:
            outcome = _failed(row_of(item), error, index)
        yield outcome


def _row_of(item: Loaded) -> Row:
    return item.row


def _failed(row: Row, error: Exception, index: Index) -> Outcome:
    """A row without files; a clip that has changed and now fails leaves none of before."""
    with contextlib.suppress(OSError, ValueError):
        index.remove(row.name)
    reason = str(error)
    if not isinstance(error, InputError):
        reason = f"{row.clip}: {type(error).__name__}: {reason}"
    return Outcome(row, {}, " ".join(reason.split()))


def _metadata(bucket: Bucket, fps: Fraction, layout: Layout) -> dict[str, str]:
    frames, rows, columns = layout.grid(*bucket)
    return {
        "num_frames": str(frames),
        "height": str(rows),
        "width": str(columns),
        "fps": repr(float(fps)),
        "duration": repr(float(bucket.frames / fps)),
    }
