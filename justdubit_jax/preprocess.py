"""python -m justdubit_jax.preprocess DATASET: clips and captions to what training reads.

DATASET is a JSON list, JSONL or CSV of rows with a caption, a clip, and (with --reference-column
and --mask-column) its reference clip and face mask; paths are relative to its folder. Written to
OUTPUT, by default `.precomputed` beside it, one safetensors file a sample under the same relative
name in each of

  latents/            latents [c, f, y, x]          reference_latents/        likewise
  audio_latents/      latents [c, t, m]             reference_audio_latents/  likewise
  conditions/         video_context, audio_context [1024, d], behind the connectors
  masks/              masks [f, y, x] in 0..1

whose metadata has the latent grid (num_frames, height, width) of the sample's bucket, as the torch
trainer's files, and the clip's fps and duration in seconds. A sample that fails is reported with
its reason and leaves no files; the others are finished, and the exit code is 2.
"""

import argparse
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from justdubit_jax import cli
from justdubit_jax.clips import read as media
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.clips.write import write_video, write_wav
from justdubit_jax.data.precomputed import TENSORS, metadata_of, read, remove, save
from justdubit_jax.data.rows import Columns, Row, read_rows, without_llm_prefix
from justdubit_jax.devices.choose import default_dtype, set_device
from justdubit_jax.errors import InputError
from justdubit_jax.latents import text as codec
from justdubit_jax.latents.audio import audio_decoder, audio_encoder
from justdubit_jax.latents.shapes import Frames, Sound
from justdubit_jax.latents.tiling import DEFAULT_TILING
from justdubit_jax.latents.video import video_decoder, video_encoder
from justdubit_jax.models.tokens import PIXELS_PER_LATENT, video_latent_frames
from justdubit_jax.preprocessing import buckets
from justdubit_jax.preprocessing.buckets import Bucket
from justdubit_jax.weights.checkpoint import Checkpoint, open_checkpoint


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A row's media in the shape of its bucket."""

    row: Row
    bucket: Bucket
    fps: Fraction
    frames: Frames
    reference_frames: Frames | None
    mask: np.ndarray | None
    sound: Sound | None
    reference_sound: Sound | None


def main(args: argparse.Namespace) -> int:
    """Preprocess a data set; returns how many samples failed."""
    set_device(args.device)
    console = Console(stderr=True, highlight=False)
    shapes = buckets.parse_buckets(args.resolution_buckets)
    columns = Columns(
        args.caption_column, args.video_column, args.reference_column, args.mask_column
    )
    rows = read_rows(args.dataset, columns)
    output = args.output_dir or args.dataset.parent / ".precomputed"
    checkpoint = open_checkpoint(args.model_path)
    failures: dict[str, str] = {}

    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("clips", total=len(rows))
        for name, reason in encode_clips(args, checkpoint, rows, shapes, output):
            progress.advance(bar)
            if reason:
                failures[name] = reason
                console.print(f"failed: {reason}", markup=False, soft_wrap=True)

        done = [row for row in rows if row.name not in failures]
        bar = progress.add_task("captions", total=len(done))
        if done:
            encode = codec.text_encoder(checkpoint, args.text_encoder_path, default_dtype())
            for batch in itertools.batched(done, args.batch_size):
                captions = [prepare_caption(row.caption, args) for row in batch]
                for row, contexts in zip(batch, encode(captions), strict=True):
                    tensors = dict(zip(TENSORS["conditions"], contexts, strict=True))
                    save(output, "conditions", row.name, tensors, metadata_of(output, row.name))
                progress.advance(bar, len(batch))
            del encode

        if args.decode:
            decode_all(args, checkpoint, output, [row.name for row in done], progress)
    console.print(f"{len(done)} of {len(rows)} samples are in {output}", soft_wrap=True)
    return len(failures)


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
    tiling = DEFAULT_TILING if args.vae_tiling else None
    encode_video = video_encoder(checkpoint, default_dtype(), tiling)
    encode_audio, rate = audio_encoder(checkpoint) if args.with_audio else (None, 0)
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
            for role, tensor in tensors.items():
                if tensor is not None:
                    named = {TENSORS[role][0]: tensor}
                    save(output, role, item.row.name, named, _metadata(item.bucket, item.fps))
            yield item.row.name, None

    for row in rows:
        remove(output, row.name)
        try:
            item = load_row(row, shapes, rate)
        except InputError as error:
            yield row.name, str(error)
            continue
        group = waiting[item.bucket]
        group.append(item)
        if len(group) == args.batch_size:
            yield from finish(waiting.pop(item.bucket))
    for group in waiting.values():
        yield from finish(group)


def load_row(row: Row, shapes: Sequence[Bucket], sample_rate: int) -> Loaded:
    """Read a row's files into its bucket; sample_rate 0 leaves the sound out.

    Raises InputError naming the file: unreadable, too short, another frame rate, no sound.
    """
    longest = max(bucket.frames for bucket in shapes)
    clip = media.read_video(row.clip, longest)
    count, height, width, _ = clip.frames.shape
    try:
        bucket = buckets.choose_bucket(count, height, width, shapes)
    except InputError as error:
        raise InputError(f"{row.clip}: {error}") from None

    def companion(path: Path) -> Frames:
        other = media.read_video(path, bucket.frames)
        if other.fps != clip.fps:
            raise InputError(
                f"{path}: {float(other.fps):g} frames per second, {row.clip} has "
                f"{float(clip.fps):g}; both must be the same"
            )
        if len(other.frames) < bucket.frames:
            raise InputError(
                f"{path}: {len(other.frames)} frames, {row.clip} needs {bucket.frames} (its bucket)"
            )
        return resize_and_crop(other.frames, bucket.height, bucket.width)

    def sound(path: Path) -> Sound | None:
        seconds = Fraction(bucket.frames) / clip.fps
        return media.read_audio(path, sample_rate, seconds) if sample_rate else None

    mask = companion(row.mask) if row.mask else None
    return Loaded(
        row=row,
        bucket=bucket,
        fps=clip.fps,
        frames=resize_and_crop(clip.frames[: bucket.frames], bucket.height, bucket.width),
        reference_frames=companion(row.reference) if row.reference else None,
        mask=None if mask is None else buckets.pool_mask(mask.mean(-1, dtype=np.float32) / 255),
        sound=sound(row.clip),
        reference_sound=sound(row.reference) if row.reference else None,
    )


def decode_all(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    output: Path,
    names: Sequence[str],
    progress: Progress,
) -> None:
    """Write latents and masks back as mp4 and wav beside the folders, for a look and a listen."""
    decode_video = video_decoder(checkpoint, default_dtype(), DEFAULT_TILING)
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
            frames = _mask_frames(tensor) if role == "masks" else decode_video(tensor)
            video = target.with_name(target.name + ".mp4")
            write_video(video, frames, Fraction(metadata["fps"]))
        progress.advance(bar)


def _mask_frames(mask: np.ndarray) -> Frames:
    """A pooled mask as grey frames of the clip's size."""
    frames = np.concatenate([mask[:1], np.repeat(mask[1:], 8, 0)])
    pixels = np.kron(frames, np.ones((1, PIXELS_PER_LATENT, PIXELS_PER_LATENT)))
    return np.repeat((pixels * 255).round().astype(np.uint8)[..., None], 3, -1)


def _metadata(bucket: Bucket, fps: Fraction) -> dict[str, str]:
    return {
        "num_frames": str(video_latent_frames(bucket.frames)),
        "height": str(bucket.height // PIXELS_PER_LATENT),
        "width": str(bucket.width // PIXELS_PER_LATENT),
        "fps": repr(float(fps)),
        "duration": repr(float(bucket.frames / fps)),
    }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The torch trainer's flags."""
    parser = cli.Parser(
        prog="python -m justdubit_jax.preprocess", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("dataset", type=Path, help="data set file: .json, .jsonl or .csv")
    add("--resolution-buckets", required=True, metavar="WxHxF[;...]", help="WxH takes most frames")
    add("--model-path", required=True, type=Path, help="LTX-2 .safetensors or converted folder")
    add("--text-encoder-path", required=True, type=Path, help="Gemma 3 folder")
    add("--with-audio", action="store_true", help="encode sound too")
    add("--caption-column", default="caption")
    add("--video-column", default="media_path")
    add("--reference-column", help="column of the clip to dub from")
    add("--mask-column", help="column of the face mask video")
    add("--output-dir", type=Path, help="default: .precomputed beside the data set")
    add("--lora-trigger", help="word to put before every caption")
    add("--remove-llm-prefixes", action="store_true", help='drop "This video shows" and the like')
    add("--batch-size", type=int, default=1, help="clips, then prompts, encoded at once")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add("--vae-tiling", action="store_true", help="encode large clips in overlapping tiles")
    add("--decode", action="store_true", help="write mp4 and wav back for a look")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: expected at least 1")
    return args


def _command() -> None:
    if failed := main(parse_arguments()):
        raise InputError(f"{failed} samples failed, see above")


if __name__ == "__main__":
    cli.exiting(_command)
