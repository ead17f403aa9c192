"""The commands' way in: flags, and one-line errors."""

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from justdubit_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are InputErrors: one line, not the usage too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see --help")


def positive(value: str) -> int:
    """The `type` of a flag that takes a whole number above 0."""
    if not value.isdecimal() or not int(value):
        raise argparse.ArgumentTypeError(f"{value!r}: expected a whole number above 0")
    return int(value)


def exiting(command: Callable[[], None]) -> None:
    """Run a command; what a person can mend becomes one line on stderr and exit code 2.

    That is an InputError, and a file or folder that the system refuses (permissions, full disk).
    """
    set_up_jax()
    try:
        command()
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    else:
        return
    print("error: " + " ".join(reason.split()), file=sys.stderr)
    sys.exit(2)


# What XLA is told by every command, each with its reason; XLA_FLAGS of the environment stand behind
# them and win. Triton's products are chosen by timing, for a minute of a start, and before it is
# known that cuBLAS's are chosen, every block's weights have got a copy that only Triton's need
# (docs/gpu-record.md).
XLA_FLAGS = ("--xla_gpu_enable_triton_gemm=false",)


def set_up_jax() -> None:
    """What every command wants of JAX, unless the environment says otherwise.

    XLA gets its flags, before its first use. Compiled programs are kept between starts. Most of a
    GPU's memory is given to JAX, whose own default of three quarters is too little for the model.
    Products of float32 are of float32, where a GPU's default is TF32; those of bfloat16 are as they
    were.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    own = [flag for flag in XLA_FLAGS if flag not in given]
    os.environ["XLA_FLAGS"] = " ".join([*own, *given])
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "justdubit_jax" / "compiled"))
    if jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")


def parse_config(argv: Sequence[str]) -> ConfigDict:
    """The config named by `--config`, with `--config.key=value` applied, locked.

    Raises InputError for a missing file, an unknown flag or key, or a value of the wrong type.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=values, lock_config=True, sys_argv=list(argv)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rest = values(list(argv))
        config = values["config"].value
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        # A config file that fails puts its traceback before the reason.
        text = str(error.args[0] if error.args else error).strip()
        reason = text.splitlines()[-1] if "Traceback" in text else text
        raise InputError(f"command line: {reason}") from None
    if config is None:
        raise InputError("command line: --config FILE is missing, e.g. --config configs/dub.py")
    if not isinstance(config, ConfigDict):  # ml_collections' stand-in for a file it cannot load
        raise InputError("command line: --config: no such file, or not a config with get_config()")
    if rest[1:]:
        raise InputError(f"command line: unexpected {' '.join(rest[1:])!r}")
    return config


def read_config(path: str | Path, changes: Mapping[str, object]) -> ConfigDict:
    """A config file with other values of some keys, locked: what the command line gives."""
    flags_of = [f"--config.{key}={value}" for key, value in changes.items()]
    return parse_config(["", "--config", str(path), *flags_of])


def byte_count(text: str) -> int:
    """The `type` of a flag that takes a size: 80GB, 79.6GiB, 24e9."""
    size = r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kMGT]?)(i?)B?"
    match = re.fullmatch(size, text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 80GB")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


@contextlib.contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` are done, as it is told: a bar in a terminal, lines elsewhere."""
    plain = not console.is_interactive
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)
    with Progress(*columns, MofNCompleteColumn(), console=console, disable=plain) as progress:
        task = progress.add_task(what, total=total)

        def tell(done: int) -> None:
            progress.update(task, completed=done)
            if plain:
                console.print(f"{what} {done}/{total}", markup=False, highlight=False)

        yield tell
