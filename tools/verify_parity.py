"""Compare every part of justdubit_jax with golden vectors of the PyTorch reference.

    python tools/verify_parity.py GOLDEN_DIR [--only NAME] [--out DIR] [--dtype bfloat16]

A golden file is a .safetensors file with weights under a checkpoint's keys, `input.*` and
`expect.*` tensors and, in its metadata, `config` and `meta` (settings, and the files that hold
shared weights and inputs). Its kind is the known name that `meta.component`, or else its own name,
starts with. All is computed in float32 at the highest matmul precision, on JAX's default device:
so it also checks a new GPU, or a new version of JAX. With --dtype bfloat16 the models are run as
training and dubbing run them on a GPU, and compared with the reference in float32.

A folder that holds a whole world instead (expect, checkpoint and lora.safetensors, gemma/ and
dataset/) is computed by the commands, from file to file: `expect` has each stage from the stored
results of the one before it, `chain` everything from the files on.

Exit code 0: every error is within its limit. 1: one is not, or a file could not be computed (the
others still are). 2: bad input. With --out, DIR/FILE.safetensors holds what was computed, under
the names, shapes and types of the expectations.

To support another list of tensors, write its functions in parity/cases.py, give new kinds a limit
in LIMITS, and enter the list in SUPPORTED.
"""

import collections
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from parity import end_to_end
from parity.cases import CASES
from parity.golden import Golden, Tensors
from parity.table import WIDTH, Row
from parity.training import learning_rates

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.files import save_safetensors

# Which tensors are asked for: kind -> regex of the whole name after "expect.". Tensors in no list
# exist only inside the reference's code, or for options that no LTX-2 checkpoint sets.
LISTS = {
    "foundation": {
        "audio_mel": r"log_mel_16k",
        "audio_vae": r"(encode|decode)\.\w+|encode_waveform\.latent",
        "gemma": r"hidden_states\.\d+",
        "cross_mask_19b": r"(per_token_cross\.)?(audio|video)_velocity",
        "lora_19b": r"(cross_mask\.)?(audio|video)_velocity",
        "train_19b": r".*",
        "text_19b": r"\w+\.(audio_context|video_context|mask)",
        "transformer_19b": r"((per_token_cross|no_text_mask)\.)?(audio|video)_velocity",
        "tokens": r"(video|audio)_tokens|video_positions\.fps\d+|audio_positions"
        r"|(audio|video)_latent_frames\w*|logit_normal_\w+|rope\.split\.pad\d\.(cos|sin)",
        "video_vae_20": r"(encode|decode|untiled_\w+)\.\w+",
        "vocoder_20": r"waveform\w*",
    },
    "sampling": {
        "transformer_19b": r"(stg|isolated)\.(audio|video)_velocity",
        "denoise_19b": r".*",
        "tokens": r"sigmas\.(default_tokens|latent\d)\.\w+|euler\.\w+"
        r"|guide\.(cfg|stg|multi_modal\w*)|to_\w+",
    },
    "ltx23": {
        "transformer_22b": r"((per_token_cross|no_text_mask|stg|isolated)\.)?"
        r"(audio|video)_velocity",
        "cross_mask_22b": r"(per_token_cross\.)?(audio|video)_velocity",
        "text_22b": r"\w+\.(audio_context|video_context|mask)",
        "video_vae_23": r"(encode|decode)\.\w+",
        "vocoder_23": r"waveform\w*",
    },
}
SUPPORTED = ("foundation", "sampling", "ltx23")

# Largest fair max |got - want| / max |want|: thirty times the reference's own float32 error
# against float64, at least 2e-5. Integers must be equal.
LIMITS = {
    "audio_mel": 6e-4,
    "audio_vae": 2e-5,
    "cross_mask_19b": 2e-5,
    "cross_mask_22b": 2e-5,
    "denoise_19b": 4e-5,
    "gemma": 3e-5,
    "lora_19b": 2e-5,
    "text_19b": 2e-5,
    "text_22b": 2e-5,
    "tokens": 1e-6,
    "train_19b": 8e-5,
    "transformer_19b": 2e-5,
    "transformer_22b": 2e-5,
    "video_vae_20": 9e-4,  # narrow models, whose pixel norms amplify rounding
    "video_vae_23": 9e-4,
    "vocoder_20": 2e-5,
    "vocoder_23": 2e-4,
}
# With models in bfloat16, |got - want| / |want| as vectors. bfloat16 rounds by 2e-3; these are two
# to four times the worst tensor of a kind on a CPU, since another order of sums rounds otherwise.
BFLOAT16_LIMITS = {
    "audio_vae": 3e-2,
    "cross_mask_19b": 3e-2,
    "cross_mask_22b": 3e-2,
    "gemma": 3e-2,
    "lora_19b": 3e-2,
    "text_19b": 3e-2,
    "text_22b": 3e-2,
    "train_19b": 5e-2,
    "transformer_19b": 3e-2,
    "transformer_22b": 3e-2,
    "video_vae_20": 1e-1,
    "video_vae_23": 1e-1,
}
# Of the training, what a first step has: AdamW's step is about as long for a wrong sign.
BFLOAT16_TRAINING = r"at_start\..*|step0\.(?!param|video_prediction|audio_prediction).*"

# Exceptions of the kind "tokens", absolute: a layout is right or wrong, and rotary angles reach
# 15,708 rad in float32.
TOKEN_LIMITS = {r"\w+_(tokens|positions).*": 0.0, r"rope\..*": 1e-5}

# Largest fair (got - want) / learning rate of trained parameters, over a group: max, rms. In the
# group of the low rates it is mostly the rounding of values near 1.
PARAMETER_LIMITS = {"default": (0.05, 2e-3), "low": (0.3, 0.05)}


def kind_of(golden: Golden) -> str | None:
    """The longest known name that the file's component, or else its stem, starts with."""
    name = golden.meta.get("component", golden.path.stem)
    kinds = [kind for kinds in LISTS.values() for kind in kinds if name.startswith(kind)]
    return max(kinds, key=len, default=None)


def asked_by(kind: str | None, name: str) -> str | None:
    """The list that asks for a tensor."""
    for asked, regexes in LISTS.items():
        if kind in regexes and re.fullmatch(regexes[kind], name):
            return asked
    return None


def compare(golden: Golden, kind: str, wanted: Sequence[str], got: Tensors) -> Iterator[Row]:
    """Errors of the wanted tensors; those of single parameters are summed up by step."""
    parameters: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for name in wanted:
        want = golden.expect[name]
        if name not in got:
            yield Row(name, np.nan, np.nan, "not computed")
        elif got[name].shape != want.shape:
            shapes = f"shape {list(got[name].shape)}, expected {list(want.shape)}"
            yield Row(name, np.nan, np.nan, shapes)
        elif match := re.fullmatch(r"(step\d+)\.(grad|param)\.(.+)", name):
            parameters[match[1], match[2]][match[3]] = name
        else:
            yield Row(name, *measure(golden, kind, name, got[name]))
    for (step, what), names in parameters.items():
        if what == "param":
            yield from parameter_rows(golden, step, names, got)
            continue
        rows = [Row(key, *measure(golden, kind, n, got[n])) for key, n in names.items()]
        worst = max(rows, key=lambda row: (np.isnan(row.error), row.error))
        note = f"worst of {len(rows)}: {worst.tensor}"
        yield Row(f"{step}.grad.*", worst.error, worst.limit, note)


def measure(golden: Golden, kind: str, name: str, got: np.ndarray) -> tuple[float, float]:
    """Error of one tensor, and its limit."""
    want = golden.expect[name]
    if golden.dtype == jnp.bfloat16:
        difference = np.linalg.norm((got.astype(np.float64) - want).ravel())
        return float(difference / np.linalg.norm(want.ravel())), BFLOAT16_LIMITS[kind]
    error = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    if want.dtype.kind in "iub":
        return error, 0.0
    if kind == "tokens":
        for pattern, limit in TOKEN_LIMITS.items():
            if re.fullmatch(pattern, name):
                return error, limit
    return error / max(float(np.abs(want).max(initial=0)), 1e-30), LIMITS[kind]


def parameter_rows(golden: Golden, step: str, names: dict[str, str], got: Tensors) -> Iterator[Row]:
    """Error of the parameters after a step in units of the learning rate, by group."""
    groups = collections.defaultdict(list)
    for key, rate in learning_rates(golden, {key: [key] for key in names}).items():
        difference = got[names[key]].astype(np.float64) - golden.expect[names[key]]
        group = "default" if rate == np.float32(golden.meta["lr"]) else "low"
        groups[group].append((difference / rate).ravel())
    for group, parts in groups.items():
        error = np.concatenate(parts)
        values = float(np.abs(error).max()), float(np.sqrt((error**2).mean()))
        for what, value, limit in zip(("max", "rms"), values, PARAMETER_LIMITS[group], strict=True):
            note = f"of {len(parts)}, in learning rates"
            yield Row(f"{step}.param.*, {group} group, {what}", value, limit, note)


def asked(golden: Golden, kind: str | None) -> list[str]:
    """The tensors that are compared."""
    names = [n for n in sorted(golden.expect) if asked_by(kind, n) in SUPPORTED]
    if golden.dtype != jnp.bfloat16:
        return names
    if kind not in BFLOAT16_LIMITS:
        return []
    names = [n for n in names if golden.expect[n].dtype.kind == "f"]
    return [n for n in names if kind != "train_19b" or re.fullmatch(BFLOAT16_TRAINING, n)]


def compute(golden: Golden, kind: str, wanted: Sequence[str]) -> Tensors:
    """The tensors that can be made of those that are compared, in the types of the expectations."""
    found = CASES[kind](golden, wanted) if wanted else {}
    return {n: np.asarray(found[n]).astype(golden.expect[n].dtype) for n in wanted if n in found}


def verify(path: Path, out: Path | None, dtype: Any) -> collections.Counter[str]:
    """Compute, compare, print and write one file; returns how often each verdict was given."""
    start = time.perf_counter()
    try:
        golden = Golden.read(path, dtype)
    except InputError as error:
        return failed(path, error)
    kind, names = kind_of(golden), sorted(golden.expect)
    if kind is None or not names:
        print(f"\n{path.stem}: {'unknown' if names else 'nothing expected'}, not compared")
        return collections.Counter()
    lists = {name: asked_by(kind, name) for name in names}
    wanted = asked(golden, kind)
    tally: collections.Counter[str] = collections.Counter()
    got: Tensors = {}
    try:
        got = compute(golden, kind, wanted)
        rows = list(compare(golden, kind, wanted, got))
        tally.update(row.verdict for row in rows)
        print(f"\n{path.stem} ({time.perf_counter() - start:.1f} s)", *rows, sep="\n  ")
    except Exception as error:  # whatever it is, the other files are still compared
        tally += failed(path, error)
    if out is not None and wanted:
        save_safetensors(out / path.name, {f"expect.{name}": x for name, x in got.items()}, {})
    for name in names:
        if lists[name] and lists[name] not in SUPPORTED:
            tally["not supported yet"] += 1
            print(f"  {name:{WIDTH}} {'-':>8} {'-':>8}  not supported yet ({lists[name]})")
    if others := list(lists.values()).count(None):
        print(f"  {others} more that no list asks for")
    return tally


def verify_world(folder: Path, only: str | None, out: Path | None) -> collections.Counter[str]:
    """The same for a whole world, stage by stage and from its files on."""
    tally: collections.Counter[str] = collections.Counter()
    world = end_to_end.read_world(folder)
    for run in [name for name in names_in(folder) if only in (None, name)]:
        start = time.perf_counter()
        try:
            got = end_to_end.compute(world, run)
        except Exception as error:
            tally += failed(folder / run, error)
            continue
        rows = list(end_to_end.compare(world, run, got))
        tally.update(row.verdict for row in rows)
        print(f"\n{run} ({time.perf_counter() - start:.1f} s)", *rows, sep="\n  ")
        if out is not None:
            file = out / f"{run}.safetensors"
            save_safetensors(file, {f"expect.{name}": x for name, x in got.items()}, {})
    return tally


def failed(path: Path, error: Exception) -> collections.Counter[str]:
    """Print why a file could not be compared; a surprise also as a traceback, on stderr."""
    reason = " ".join(str(error).split())
    if not isinstance(error, InputError):
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {reason}"
    print(f"\n{path.stem}\n  FAIL: {reason[:300]}")
    return collections.Counter(FAIL=1)


class Arguments(NamedTuple):
    """The command line: a folder, the one file or run of it that is asked for, where to write, in
    what models are run."""

    folder: Path
    only: str | None
    out: Path | None
    dtype: Any


def parse() -> Arguments:
    """Raises InputError if there is nothing to compare, or the result cannot be written."""
    parser = cli.Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="GOLDEN_DIR", type=Path)
    parser.add_argument("--only", metavar="NAME", help="one file, without .safetensors; or run")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write what was computed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    folder, only, out, dtype = arguments = Arguments(
        given.folder, given.only, given.out, jnp.dtype(given.dtype)
    )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not any(only in (None, name) for name in names_in(folder)):
        raise InputError(f"{folder}: no file {only or '*'}.safetensors")
    if out is not None:
        if out.resolve() == folder.resolve():
            raise InputError(f"--out {out}: would overwrite the golden files")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: {error.strerror}") from None
    if dtype == jnp.bfloat16 and end_to_end.recognised(folder):
        raise InputError(f"--dtype bfloat16: {folder} is of files to files, compared in float32")
    return arguments


def names_in(folder: Path) -> list[str]:
    """What can be compared: the runs of a whole world, else the golden files."""
    if end_to_end.recognised(folder):
        return end_to_end.runs_of(end_to_end.read_world(folder))
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def main() -> None:
    folder, only, out, dtype = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.platform} ({device.device_kind}), {dtype}\n")
    print(f"  {'tensor':{WIDTH}} {'error':>8} {'limit':>8}  verdict")
    if end_to_end.recognised(folder):
        tally = verify_world(folder, only, out)
    else:
        names = [name for name in names_in(folder) if only in (None, name)]
        paths = [folder / f"{name}.safetensors" for name in names]
        tally = sum((verify(path, out, dtype) for path in paths), collections.Counter())
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(tally.items())))
    if tally["FAIL"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.exiting(main)
