"""python -m justdubit_jax.demo: the whole job on made-up files, on a CPU, in minutes.

Makes a toy LTX-2 checkpoint, a toy Gemma and a small data set of talking cartoon faces; then
preprocesses, trains and exports with the same commands as for the real files. A second run starts
anew and removes only what the first made.
"""

import json
import shlex
import shutil
import time
import typing
from pathlib import Path

import jax
from rich.console import Console

from justdubit_jax import cli, dub, preprocess, train
from justdubit_jax.data import index, precomputed
from justdubit_jax.demo.assets import GEMMA_TEXT_CONFIG, make_dataset, make_gemma
from justdubit_jax.demo.checkpoint import Flavour, make_checkpoint
from justdubit_jax.devices import sharding
from justdubit_jax.files import open_tensors
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import load_base, prepare_training
from justdubit_jax.validation.fixed_loss import SIGMAS, FixedLoss
from justdubit_jax.weights.checkpoint import open_checkpoint

CONFIG = Path(__file__).parents[2] / "configs" / "demo.py"
SAMPLES = 4
BUCKET = "96x64x25"

RUN = RunFolder(Path("run"))  # below the workdir

# Everything that the demo leaves below its workdir; `**` where a library names the files.
_MADE = (
    "assets/ltx-2-tiny.safetensors",
    *(f"assets/gemma/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    *(f"assets/gemma/{name}" for name in ("tokenizer_config.json", "special_tokens_map.json")),
    "dataset/dataset.json",
    *(f"dataset/clips/[0-9][0-9][0-9]_{role}.mp4" for role in ("media", "reference", "mask")),
    *(
        f"dataset/.precomputed/{role}/clips/[0-9]*_media.safetensors"
        for role in precomputed.TENSORS
    ),
    *(f"dataset/.precomputed/{name}" for name in (index.FILE, index.LOCK)),
    f"{RUN.state}/**",
    *map(str, (RUN.any_lora, RUN.metrics, RUN.validation, RUN.any_sample, RUN.loss_picture)),
    f"{RUN.contexts}/*.safetensors",
    f"{RUN.tensorboard}/events*",
    "dubbed.mp4",
)


def main(workdir: Path, flavour: Flavour = "2.0") -> None:
    """Make, preprocess, train, and say what came of it."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    remove_made(workdir)
    checkpoint, gemma = workdir / "assets" / "ltx-2-tiny.safetensors", workdir / "assets" / "gemma"
    dataset, run_dir = workdir / "dataset" / "dataset.json", workdir / RUN.path
    precomputed = dataset.parent / ".precomputed"

    console.print("[bold]1. A toy checkpoint, a toy text encoder and a data set")
    make_gemma(gemma)
    text = GEMMA_TEXT_CONFIG
    width = text["hidden_size"] * (text["num_hidden_layers"] + 1)
    make_checkpoint(checkpoint, width, flavour=flavour)
    make_dataset(dataset.parent, SAMPLES)

    preprocess_arguments = [
        *(str(dataset), "--resolution-buckets", BUCKET, "--model-path", str(checkpoint)),
        *("--text-encoder-path", str(gemma), "--with-audio"),
        *("--reference-column", "reference_path", "--mask-column", "mask_path"),
    ]
    console.print("[bold]2. python -m justdubit_jax.preprocess", shlex.join(preprocess_arguments))
    if failed := preprocess.main(preprocess.parse_arguments(preprocess_arguments)):
        raise SystemExit(f"{failed} samples failed")

    row = json.loads(dataset.read_text())[0]
    caption, reference = row["caption"], dataset.parent / row["reference_path"]
    train_arguments = [
        *("--config", str(CONFIG), f"--config.model.model_path={checkpoint}"),
        f"--config.model.text_encoder_path={gemma}",
        f"--config.data.preprocessed_data_root={precomputed}",
        f"--config.output_dir={run_dir}",
        f"--config.validation.prompts={(caption,)}",
        f"--config.validation.reference_videos={(str(reference),)}",
    ]
    console.print("[bold]3. python -m justdubit_jax.train", shlex.join(train_arguments))
    config = cli.parse_config(["train", *train_arguments])
    train.main(config)

    run = settings.read(config)
    path = RunFolder(run_dir).lora(run.steps)
    dub_arguments = [
        *("--video", str(reference), "--prompt", caption, "--lora", str(path)),
        *("--model-path", str(checkpoint), "--text-encoder-path", str(gemma)),
        *("--out", str(workdir / "dubbed.mp4"), "--steps", "2"),
    ]
    console.print("[bold]4. python -m justdubit_jax.dub", shlex.join(dub_arguments))
    dub.main(dub.parse_arguments(dub_arguments))

    before, after = losses(run)
    with open_tensors(path, "LoRA file") as file:
        tensors = len(file.keys())
    console.print("[bold]Done[/] in", f"{time.perf_counter() - started:.0f} s")
    console.print(f"  checkpoint    {checkpoint}\n  text encoder  {gemma}")
    console.print(f"  data set      {dataset}: {SAMPLES} pairs; latents in {precomputed}")
    console.print(f"  LoRA          {path}: {tensors} tensors, rank {run.lora.rank}")
    console.print(f"  run           {run_dir}: state/ to continue from, samples/, metrics.jsonl")
    console.print(f"  dubbed        {workdir / 'dubbed.mp4'}: the reference clip, with that LoRA")
    console.print(
        f"  loss          {before['loss']:.4f} before, {after['loss']:.4f} after {run.steps} steps "
        f"(mean at sigmas {', '.join(map(str, SIGMAS))} with fixed noise)"
    )


def losses(run: settings.Settings) -> list[dict[str, float]]:
    """The fixed loss with the untrained and with the trained adapters."""
    source, mesh = open_checkpoint(run.model_path), sharding.make_mesh(1, 1)
    training = prepare_training(run, source.config, mesh)
    frozen = load_base(training, source)
    with Checkpoints(RunFolder(run.output_dir).state, read_only=True) as checkpoints:
        trained = checkpoints.adapters(run.steps)
    untrained = lora.init(training.abstract.adapters, jax.random.key(run.seed))
    groups, _ = train.read_data(run)
    fixed = FixedLoss(training.objective, training.graphdef, training.layout, mesh)
    return [fixed.mean(lora.Weights(a, frozen), groups) for a in (untrained, trained)]


def remove_made(workdir: Path) -> None:
    """Remove what an earlier run made, then the folders that this leaves empty."""
    folders: set[Path] = set()
    for pattern in _MADE:
        base = workdir / pattern.removesuffix("/**")
        if pattern.endswith("/**"):
            shutil.rmtree(base, ignore_errors=True)
        else:
            for path in workdir.glob(pattern):
                path.unlink()
        folders |= {workdir / parent for parent in Path(pattern).parents}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _command() -> None:
    parser = cli.Parser(prog="python -m justdubit_jax.demo", description="The demo.")
    parser.add_argument("--workdir", type=Path, default=Path("outputs/demo"))
    parser.add_argument(
        "--flavour",
        choices=typing.get_args(Flavour),
        default="2.0",
        help="whose toy: LTX-2.0's or LTX-2.3's",
    )
    args = parser.parse_args()
    main(args.workdir, args.flavour)


if __name__ == "__main__":
    cli.exiting(_command)
