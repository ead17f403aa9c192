"""python -m justdubit_jax.preprocess DATASET: clips and captions to what training reads.

DATASET is a JSON list, JSONL, CSV or TSV of rows with a caption, a clip, and (with
--reference-column and --mask-column) its reference clip and face mask; paths are relative to its
folder. Written to OUTPUT, by default `.precomputed` beside it, one safetensors file a sample under
the same relative name in each of

  latents/            latents [c, f, y, x]          reference_latents/        likewise
  audio_latents/      latents [c, t, m]             reference_audio_latents/  likewise
  conditions/         video_context, audio_context [1024, d], behind the connectors
  masks/              masks [f, y, x] in 0..1

whose metadata has the latent grid (num_frames, height, width) of the sample's bucket, as the torch
trainer's files, the clip's fps and duration in seconds, and as JSON in `source` how the file was
taken: its tracks, rate, size, crop and colours, of which a table is shown at the end. Beside them
index.jsonl lists the samples, which are what is trained on. A row that fails is reported with its
reason and leaves no files; the others are finished, and the exit code is 2.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from justdubit_jax import cli
from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.data.index import Index
from justdubit_jax.data.rows import Columns, MissingColumn, Table, read_table
from justdubit_jax.data.samples import some_of
from justdubit_jax.devices.choose import default_dtype, set_device
from justdubit_jax.errors import InputError
from justdubit_jax.latents.text import cut_prompts, text_encoder
from justdubit_jax.preprocessing.buckets import parse_buckets
from justdubit_jax.preprocessing.decisions import Decisions
from justdubit_jax.preprocessing.decode import decode_all
from justdubit_jax.preprocessing.encode import (
    Outcome,
    encode_captions,
    encode_clips,
    prepare_caption,
)
from justdubit_jax.preprocessing.load import Loaded
from justdubit_jax.weights.checkpoint import open_checkpoint

_LOG_WIDTH = 200  # of the table where nobody looks at a terminal

# What the flags call the fields of Columns.
_ROLES = {"caption": "caption", "clip": "video", "reference": "reference", "mask": "mask"}


def main(args: argparse.Namespace) -> int:
    """Preprocess a data set; returns how many rows of its table failed."""
    set_device(args.device)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    table = read_columns(args)
    checkpoint = open_checkpoint(args.model_path)
    shapes = parse_buckets(args.resolution_buckets, checkpoint.layout)
    captions = [prepare_caption(row.caption, args) for row in table.rows]
    cut = zip(table.rows, cut_prompts(args.text_encoder_path, captions), strict=True)
    refused = {row.name: reason for row, reason in cut if reason}
    index = Index(args.output_dir or args.dataset.parent / ".precomputed")
    others = index.begin({row.name for row in table.rows})
    decisions = Decisions()

    with Progress(console=console, disable=not console.is_terminal) as progress:

        def passed(outcomes: Iterable[Outcome], what: str, total: int) -> Iterator[Outcome]:
            """Those that did not fail; the others are told."""
            bar = progress.add_task(what, total=total)
            for outcome in outcomes:
                progress.advance(bar)
                if outcome.reason:
                    row = outcome.row
                    tell(console, f"failed: {row.place}, {row.name}: {outcome.reason}")
                else:
                    yield outcome

        def read(item: Loaded) -> None:
            decisions.add(item)
            for finding in item.findings:
                tell(console, f"note: {finding}")

        for line in (*table.notes, *(f"failed: {fault}" for fault in table.faults)):
            tell(console, line)
        if others:
            tell(console, f"no longer in the data set, so not trained on: {some_of(others)}")
        clips = encode_clips(args, checkpoint, table.rows, refused, shapes, index, read)
        clips = list(passed(clips, "clips", len(table.rows)))
        done: list[str] = []
        if clips:
            encode = text_encoder(checkpoint, args.text_encoder_path, default_dtype())
            outcomes = encode_captions(args, encode, clips, index)
            for outcome in passed(outcomes, "captions", len(clips)):
                index.add(outcome.row.name, outcome.files)
                done.append(outcome.row.name)
            del encode
        index.finish()
        if args.decode:
            decode_all(args, checkpoint, index.folder, done, progress)
    if decisions.groups:
        wide = console if console.is_terminal else Console(stderr=True, width=_LOG_WIDTH)
        wide.print(decisions.table(), soft_wrap=False)
    total = len(table.rows) + len(table.faults)
    tell(console, f"{len(done)} of {total} samples are in {index.folder}")
    return total - len(done)


def tell(console: Console, line: str) -> None:
    """A line as it is: file names and captions are no markup."""
    console.print(line, markup=False)


def read_columns(args: argparse.Namespace) -> Table:
    """The data set's rows by the flags' columns; a missing one is said with its flag."""
    columns = Columns(
        args.caption_column, args.video_column, args.reference_column, args.mask_column
    )
    try:
        return read_table(args.dataset, columns)
    except MissingColumn as error:
        raise InputError(f"{error}; name it with --column {_ROLES[error.role]}=NAME") from None


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The torch trainer's flags."""
    parser = cli.Parser(
        prog="python -m justdubit_jax.preprocess", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("dataset", type=Path, help="data set file: .json, .jsonl, .csv or .tsv")
    add("--resolution-buckets", required=True, metavar="WxHxF[;...]", help="WxH takes most frames")
    add("--model-path", required=True, type=Path, help="LTX-2 .safetensors or converted folder")
    add("--text-encoder-path", required=True, type=Path, help="Gemma 3 folder")
    add("--with-audio", action="store_true", help="encode sound too")
    add("--caption-column", default="caption")
    add("--video-column", default="media_path")
    add("--reference-column", help="column of the clip to dub from")
    add("--mask-column", help="column of the face mask video")
    add(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        type=_named_column,
        help="the same for any role: --column caption=prompt --column reference=source_video; "
        f"roles: {', '.join(_ROLES.values())}",
    )
    add(
        "--frame-rate",
        type=exact_fps,
        help="resample every clip to it, e.g. 25 (JustDubit's own); default: the clip's",
    )
    add("--strict-rate", action="store_true", help="refuse clips of a variable rate or with holes")
    add("--output-dir", type=Path, help="default: .precomputed beside the data set")
    add("--lora-trigger", help="word to put before every caption")
    add("--remove-llm-prefixes", action="store_true", help='drop "This video shows" and the like')
    add("--batch-size", type=int, default=1, help="clips, then prompts, encoded at once")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add("--vae-tiling", action="store_true", help="encode large clips in overlapping tiles")
    add("--decode", action="store_true", help="write mp4 and wav back for a look")
    args = parser.parse_args(argv)
    for role, name in args.column:
        setattr(args, f"{role}_column", name)
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: expected at least 1")
    if args.strict_rate and args.frame_rate is not None:
        parser.error("--strict-rate refuses what --frame-rate resamples: give one of them")
    return args


def _named_column(text: str) -> tuple[str, str]:
    role, _, name = text.partition("=")
    if role not in _ROLES.values() or not name:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected ROLE=NAME with one of {', '.join(_ROLES.values())}"
        )
    return role, name


def _command() -> None:
    if failed := main(parse_arguments()):
        raise InputError(f"{failed} samples failed, see above")


if __name__ == "__main__":
    cli.exiting(_command)
