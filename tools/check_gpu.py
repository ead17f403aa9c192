"""Everything about this machine's GPU that is worth knowing before a run, in ten minutes.

  python tools/check_gpu.py [--minutes 10] [--only SECTION ...] [--json FILE] [--markdown FILE]

Versions and rates; attention and the golden vectors beside the reference's, in float32 and in
bfloat16; the demo; the default training step on as many blocks of the published width as fit, with
random weights, its time, memory and kernels beside the planner's estimates; sampling, encoding and
decoding; quantized weights; several devices. Ends with a table in Markdown, made to be pasted into
an issue, and exit code 1 if a limit was not kept or a part failed. On a CPU everything is small.

Each part runs in a process of its own, so one that crashes takes no other with it; what there is no
time left for is named.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from checks.report import as_json, markdown, read_json
from checks.result import Row, Section

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.files import replacing


def sections(args: argparse.Namespace) -> dict[str, Callable[[], Iterator[Row]]]:
    """What is checked, in this order. Nothing here touches a device before it is called."""
    import jax
    from checks import attention, demo, machine, programs, training, vectors

    def small() -> bool:
        return jax.default_backend() == "cpu"

    return {
        "machine": lambda: machine.check(small()),
        "attention": lambda: attention.check(small()),
        "step": lambda: training.step(small(), args.runs, args.kernels),
        "demo": demo.check,
        "float32": lambda: vectors.float32(args.golden or vectors.GOLDEN),
        "programs": lambda: programs.check(small(), 3),
        "bfloat16": lambda: vectors.bfloat16(args.golden or vectors.GOLDEN),
        "quantized": lambda: training.quantized(small(), 3),
        "devices": lambda: training.divided(small(), 3),
    }


def main() -> None:
    args = parse_arguments()
    if args.one is not None:
        found, start = list[Row](), time.monotonic()
        for row in sections(args)[args.one]():
            found.append(row)  # written and said after each: it may be stopped
            print(f"  {time.monotonic() - start:.0f} s  {row.what}: {row.got}", flush=True)
            args.result.write_text(as_json([Section(args.one, 0.0, tuple(found))]))
        return
    until = time.monotonic() + 60 * args.minutes
    done = []
    for name in args.only or sections(args):
        done.append(run(name, until - time.monotonic(), args))
        if args.json:  # after each, lest all be lost with the last
            with replacing(args.json) as temporary:
                temporary.write_text(as_json(done))
    text = markdown(done)
    print(text)
    if args.markdown:
        with replacing(args.markdown) as temporary:
            temporary.write_text(text)
    if any(section.failed for section in done):
        sys.exit(1)


def run(name: str, seconds: float, args: argparse.Namespace) -> Section:
    """One section in a process of its own, which has so many seconds left."""
    if seconds < 5:
        return Section(name, 0.0, trouble="not run: no time left")
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        own = ["--one", name, "--result", str(result), "--runs", str(args.runs)]
        own += ["--golden", str(args.golden)] if args.golden else []
        own += ["--kernels", str(args.kernels)] if args.kernels else []
        command = [sys.executable, *sys.argv[:1], *own]
        trouble = ""
        try:
            done = subprocess.run(
                command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            trouble = f"stopped after {seconds:.0f} s, when no time was left"
        else:
            if done.returncode != 0:
                words = done.stderr.strip().splitlines() or [""]
                trouble = f"exit code {done.returncode}: {words[-1][:500]}"
                print(done.stderr[-4000:], file=sys.stderr)
        took = time.monotonic() - start
        rows = read_json(result.read_text())[0].rows if result.exists() else ()
        return Section(name, took, rows, trouble)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        prog="python tools/check_gpu.py", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="in all; later parts are left out")
    add("--only", nargs="+", metavar="SECTION", help="these parts alone")
    add("--runs", type=cli.positive, default=20, help="timed training steps")
    add("--golden", type=Path, metavar="DIR", help="golden vectors; default: those of tests/")
    add("--json", type=Path, metavar="FILE", help="everything that was found")
    add("--markdown", type=Path, metavar="FILE", help="the table, which is printed too")
    add("--kernels", type=Path, metavar="FILE", help="the step's kernels, seen and expected")
    add("--one", help=argparse.SUPPRESS)
    add("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.only or ():
        if name not in (known := sections(args)):
            raise InputError(f"command line: --only {name}: expected some of {', '.join(known)}")
    return args


if __name__ == "__main__":
    cli.exiting(main)
