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
import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from justdubit_jax import cli
from justdubit_jax.data.precomputed import TENSORS, metadata_of, save
from justdubit_jax.data.rows import Columns, read_rows
from justdubit_jax.devices.choose import default_dtype, set_device
from justdubit_jax.errors import InputError
from justdubit_jax.latents.text import text_encoder
from justdubit_jax.preprocessing.buckets import parse_buckets
from justdubit_jax.preprocessing.decode import decode_all
from justdubit_jax.preprocessing.encode import encode_clips, prepare_caption
from justdubit_jax.weights.checkpoint import open_checkpoint


def main(args: argparse.Namespace) -> int:
    """Preprocess a data set; returns how many samples failed."""
    set_device(args.device)
    console = Console(stderr=True, highlight=False)
    columns = Columns(
        args.caption_column, args.video_column, args.reference_column, args.mask_column
    )
    rows = read_rows(args.dataset, columns)
    output = args.output_dir or args.dataset.parent / ".precomputed"
    checkpoint = open_checkpoint(args.model_path)
    shapes = parse_buckets(args.resolution_buckets, checkpoint.layout)
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
            encode = text_encoder(checkpoint, args.text_encoder_path, default_dtype())
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
