"""Write the LoRA file of any saved step of a training run, which may be under way.

  python tools/export_lora.py --run OUTPUT [--step N] [--mean] [--out FILE] [--precision bfloat16]

The same file as training writes to OUTPUT/checkpoints/.
"""

import argparse
import dataclasses
from pathlib import Path

import jax.numpy as jnp

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.record import LoRARecord
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints


def main() -> None:
    args = parse_arguments()
    folder = RunFolder(args.run)
    if not folder.state.is_dir():
        raise InputError(f"{args.run}: not a training run: {folder.state.name}/ is missing")
    with Checkpoints(folder.state, read_only=True) as checkpoints:
        if not checkpoints.steps:
            raise InputError(f"{folder.state}: no complete step")
        step = checkpoints.steps[-1] if args.step is None else args.step
        adapters = checkpoints.adapters(step, args.mean)
        record = LoRARecord.from_metadata(checkpoints.meta(step)["lora"], folder.state / str(step))
    metadata = dataclasses.replace(record, step=step).to_metadata()
    out = args.out or folder.lora(step, args.mean)
    lora_files.write_file(out, adapters, jnp.dtype(args.precision), metadata)
    print(out)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="output_dir of the training")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument(
        "--mean", action="store_true", help="the running mean (optimization.ema_decay)"
    )
    parser.add_argument(
        "--out", type=Path, help="default: OUTPUT/checkpoints/, named as training does"
    )
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    cli.exiting(main)
