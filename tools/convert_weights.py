"""Convert an LTX-2 checkpoint to Orbax, or check its names and shapes.

  python tools/convert_weights.py --checkpoint X.safetensors --out DIR
  python tools/convert_weights.py --checkpoint X.safetensors --check-only
  python tools/convert_weights.py --manifest M.json [--config C.json]

DIR holds one Orbax tree a part and checkpoint.json (the `config` metadata, and every tensor's
shape); every command takes it in place of the .safetensors. A manifest is a JSON with `tensors`:
{key: [dtype, shape]}, gzipped if its name ends in .gz; its `config` is read from --config, else
from the file beside it that is named .config.json instead of .manifest.json.
"""

import argparse
import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from rich.console import Console
from rich.table import Table

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import (
    SafetensorsCheckpoint,
    Shapes,
    open_safetensors,
    unowned,
)
from justdubit_jax.weights.family import unknown_family
from justdubit_jax.weights.load import compare, expected, load_weights, parameters
from justdubit_jax.weights.parts import build_part


def main() -> None:
    args = parse_arguments()
    console = Console(highlight=False)
    if args.manifest:
        config, shapes = read_manifest(args.manifest, args.config)
        checkpoint = None
    else:
        checkpoint = open_safetensors([args.checkpoint])
        config, shapes = checkpoint.config, checkpoint.shapes
        if not config:
            raise InputError(f"{args.checkpoint}: no `config` in the file's metadata")
        if reason := unknown_family(config, checkpoint.metadata):
            raise InputError(f"{args.checkpoint}: {reason}")
    problems = report(console, config, shapes)
    if problems:
        raise InputError(f"{args.manifest or args.checkpoint}: {problems} tensors do not fit")
    if checkpoint and args.out:
        convert(checkpoint, args.out)
        console.print(f"wrote {args.out}", soft_wrap=True)


def report(console: Console, config: dict[str, Any], shapes: Shapes) -> int:
    """Print what each part has and lacks; returns the number of tensors that do not fit."""
    table = Table("part", "tensors", "parameters", "missing", "unexpected", "mis-shaped")
    lines, problems = [], 0
    for part in keys.PARTS.values():
        model = build_part(part, config, shapes)
        mismatch = compare(part, model, shapes)
        wanted = expected(part, model)
        size = sum(math.prod(shape) for shape in wanted.values())
        counts = [len(mismatch.missing), len(mismatch.unexpected), len(mismatch.misshaped)]
        table.add_row(part.name, str(len(wanted)), f"{size:,}", *map(str, counts))
        problems += sum(counts)
        lines += [f"{part.name}: {mismatch}"] if mismatch else []
    console.print(table)
    unused = [key for key in shapes if key in keys.UNUSED]
    console.print(f"used by no module: {len(unused)}: {', '.join(unused) or '-'}", soft_wrap=True)
    unknown = unowned(shapes)
    if unknown:
        lines.append(f"of no known part: {', '.join(unknown)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return problems + len(unknown)


def convert(checkpoint: SafetensorsCheckpoint, out: Path) -> None:
    """Write every part, in the file's dtypes, to a folder that appears when it is complete."""
    if out.exists():
        raise InputError(f"{out}: exists already")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            for part in keys.PARTS.values():
                model = build_part(part, checkpoint.config, checkpoint.shapes)
                model = load_weights(checkpoint, part, model, None)
                arrays = {path: v.get_value() for path, v in parameters(model).items()}
                checkpointer.save((temporary / part.name).absolute(), arrays)
                checkpointer.wait_until_finished()
                jax.tree.map(lambda x: x.delete(), arrays)
        content = {"config": checkpoint.config, "shapes": checkpoint.shapes}
        (temporary / "checkpoint.json").write_text(json.dumps(content))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(path: Path, config_path: Path | None) -> tuple[dict[str, Any], Shapes]:
    """The config and the shapes of a manifest."""
    if config_path is None:
        name = path.name.removesuffix(".gz").replace(".manifest.json", ".config.json")
        config_path = path.with_name(name)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        tensors = json.loads(content)["tensors"]
        shapes = {key: tuple(shape) for key, (_, shape) in tensors.items()}
        return json.loads(config_path.read_text()), shapes
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest with a config beside it: {error}") from None


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=str(__doc__).partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="LTX-2 .safetensors")
    source.add_argument("--manifest", type=Path, help="keys and shapes alone, as JSON")
    parser.add_argument("--config", type=Path, help="config JSON of the manifest")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--check-only", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.checkpoint and bool(args.out) == args.check_only:
        parser.error("--checkpoint needs either --out DIR or --check-only")
    if args.manifest and args.out:
        parser.error("--manifest has no tensors to write to --out")
    return args


if __name__ == "__main__":
    cli.exiting(main)
