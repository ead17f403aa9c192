"""Measure a part of the work on this machine.

  python tools/benchmark.py step [--size 19b | --layers N --width W ...] [--peer torch]
  python tools/benchmark.py load [--model-path X.safetensors]
  python tools/benchmark.py encode | sample [--model-path X.safetensors]
  python tools/benchmark.py decode [--frames 65 257] [--model-path X.safetensors]

Each prints a table; --json FILE keeps every figure of it, with the device and the versions.
Weights and data are random where no checkpoint is given.
"""

import argparse
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from benchmarks import parts, step
from rich.console import Console
from rich.table import Table

from justdubit_jax import cli
from justdubit_jax.files import replacing

PARTS = {
    "step": (step.add_arguments, step.main, "one training step"),
    "load": (parts.add_load_arguments, parts.load, "reading a checkpoint"),
    "encode": (parts.add_clip_arguments, parts.encode, "a clip to latents"),
    "sample": (
        parts.add_sample_arguments,
        parts.sample_steps,
        "a denoising step",
    ),
    "decode": (parts.add_decode_arguments, parts.decode, "latents to an mp4"),
}


def main() -> None:
    args = parse_arguments()
    figures = PARTS[args.part][1](args)
    console = Console(highlight=False)
    device = jax.devices()[0].device_kind
    table = Table("figure", args.part, title=f"{args.part} on {device}")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), shown(value))
    console.print(table)
    if args.json:
        record = {
            "command": sys.argv,
            "device": device,
            "platform": platform.platform(),
            "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
            "python": platform.python_version(),
            args.part: figures,
        }
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


def shown(value: Any) -> str:
    """A figure as a cell of the table."""
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "\n".join(f"{key} {shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "  ".join(map(shown, value))
    return str(value)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=str(__doc__).partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True, parser_class=cli.Parser)
    for name, (add_arguments, _, summary) in PARTS.items():
        part = parts.add_parser(name, help=summary, description=f"Measure {summary}.")
        add_arguments(part)
        part.add_argument("--json", type=Path, help="file for every figure")
    return parser.parse_args()


if __name__ == "__main__":
    cli.exiting(main)
