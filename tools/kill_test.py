"""Kill a training at random moments, and show that nothing is lost by it.

  python tools/kill_test.py --kills 20 [--demo DIR] [--seed N] [--term] [--plain]

Trains the demo's data set once undisturbed and once killed (SIGKILL, with --term SIGTERM) at random
moments and started again as often, and compares the two final LoRA files bit by bit. Moments are
drawn over the whole length of a run, so they fall into set-up, steps, saves, exports, sampling and
held-out losses alike; --plain leaves out the latter two, and so the text encoder. DIR is a finished
demo's workdir; without it the demo is made first.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from safetensors.numpy import load_file

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.runs.output import RunFolder

REPO = Path(__file__).parents[1]
EVERY = 3  # steps between checkpoints


def main(args: argparse.Namespace) -> None:
    console = Console(highlight=False, soft_wrap=True)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        demo = args.demo or work / "demo"
        if args.demo is None:
            console.print("making the demo")
            subprocess.run(
                [sys.executable, "-m", "justdubit_jax.demo", "--workdir", demo],
                check=True,
                cwd=REPO,
                capture_output=True,
            )
        started = time.monotonic()
        finish(start(demo, work / "calm", args))
        length = time.monotonic() - started
        console.print(f"undisturbed: {args.steps} steps in {length:.1f} s")
        output, kills = work / "killed", 0
        sent = signal.SIGTERM if args.term else signal.SIGKILL
        while kills < args.kills:
            anew, started = not output.exists(), time.monotonic()
            run, moment = start(demo, output, args), draw.uniform(0, length)
            try:
                run.wait(moment)
            except subprocess.TimeoutExpired:
                run.send_signal(sent)
                code = run.wait()
                if args.term and code:
                    raise InputError(f"SIGTERM after {moment:.1f} s: exit code {code}") from None
                kills += 1
                console.print(f"kill {kills}: after {moment:.1f} s, {reached(output)}")
            else:  # done before its moment came: the next kills fall into another run
                check(work / "calm", output, args.steps)
                output = work / f"killed{len(list(work.iterdir()))}"
                if anew:  # what the first run compiled was there
                    length = min(length, time.monotonic() - started)
        finish(start(demo, output, args))
        check(work / "calm", output, args.steps)
        console.print(f"the same LoRA after {kills} kills")


def start(demo: Path, output: Path, args: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the training, or continue it."""
    precomputed = demo / "dataset/.precomputed"
    clip = demo / "dataset/clips/000_reference.mp4"
    flags = {
        "model.model_path": demo / "assets/ltx-2-tiny.safetensors",
        "data.preprocessed_data_root": precomputed,
        "output_dir": output,
        "optimization.steps": args.steps,
        "checkpoints.interval": EVERY,
        "checkpoints.keep_last_n": 2,
        "lora.dropout": 0.1,
        "optimization.ema_decay": 0.9,
    }
    if not args.plain:
        flags |= {
            "model.text_encoder_path": demo / "assets/gemma",
            "checkpoints.keep_best": True,
            "validation.holdout": 1,
            "validation.prompts": ("A face says: hello.",),
            "validation.reference_videos": (str(clip),),
            "validation.interval": 2 * EVERY,
        }
    command = [sys.executable, "-m", "justdubit_jax.train", "--config", "configs/demo.py"]
    command += [f"--config.{key}={value}" for key, value in flags.items()]
    command += ["--exit-zero-on-preemption"]
    return subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(run: subprocess.Popen[str]) -> None:
    """Let a training come to its end. Raises InputError if it fails."""
    _, printed = run.communicate()
    if run.returncode:
        raise InputError(f"the training ended with {run.returncode}: {printed[-2000:]}")


def reached(output: Path) -> str:
    """Where a killed training stood."""
    folder = RunFolder(output)
    saved = sorted(int(p.name) for p in folder.state.glob("*") if p.name.isdigit())
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    return f"{len(lines)} steps logged, {saved[-1] if saved else 'none'} saved"


def check(calm: Path, killed: Path, steps: int) -> None:
    """Raises InputError if the final files or the logged losses differ."""
    for mean in (False, True):
        a, b = (RunFolder(folder).lora(steps, mean) for folder in (calm, killed))
        left, right = load_file(a), load_file(b)
        if left.keys() != right.keys() or any((left[k] != right[k]).any() for k in left):
            raise InputError(f"{b}: differs from {a}")
    losses = [
        [json.loads(line)["loss"] for line in RunFolder(folder).metrics.read_text().splitlines()]
        for folder in (calm, killed)
    ]
    if losses[0] != losses[1]:
        raise InputError(f"{RunFolder(killed).metrics}: other losses than the undisturbed run's")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24, help="of the training")
    parser.add_argument("--demo", type=Path, help="workdir of a finished demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--term", action="store_true", help="SIGTERM, which must exit with 0")
    parser.add_argument("--plain", action="store_true", help="no samples, no held-out losses")
    return parser.parse_args()


if __name__ == "__main__":
    cli.exiting(lambda: main(parse_arguments()))
