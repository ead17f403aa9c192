"""python -m justdubit_jax.train --config configs/dub.py: train the LoRA.

OUTPUT/ gets `state/` (Orbax steps), `checkpoints/` (LoRA files) and `metrics.jsonl`. Started again
with the same output_dir, training continues from the newest step; `--fresh` starts over.
`--dry-run` says what a run needs, and reads no weights; with `--device h100-sxm` by the program of
a card that need not be there.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from justdubit_jax import cli
from justdubit_jax.data.batch import SampleShape
from justdubit_jax.data.batches import Batches
from justdubit_jax.data.samples import ShapeGroup
from justdubit_jax.devices import processes, sharding
from justdubit_jax.devices.choose import without_flash
from justdubit_jax.errors import InputError, about
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.planning.advice import check_fits
from justdubit_jax.planning.cards import read_card
from justdubit_jax.planning.dry_run import dry_run, dry_run_on
from justdubit_jax.planning.memory import (
    Program,
    compile_step,
    device_memory,
    peak_flops_of_mesh,
)
from justdubit_jax.planning.phases import PHASES
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.planning.show import (
    summary,
)
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.fingerprint import check_same, fingerprint
from justdubit_jax.runs.interrupt import Interrupt
from justdubit_jax.runs.intervals import is_saved
from justdubit_jax.runs.metrics import Metrics, NotFinite, open_logs
from justdubit_jax.runs.output import (
    RunFolder,
    claim_output,
    export_lora,
    lora_record,
    remove_old,
)
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training import settings
from justdubit_jax.training.optimizer import curves
from justdubit_jax.training.prepare import (
    Training,
    check_start,
    first_state,
    load_base,
    make_batches,
    place_batch,
    prepare_training,
)
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.step import State
from justdubit_jax.validation.data import largest, latents_of, read_data
from justdubit_jax.validation.prepare import prepare_validation
from justdubit_jax.validation.rounds import Rounds
from justdubit_jax.validation.settings import read_validation
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint


def main(config: ConfigDict, fresh: bool = False, term_code: int = 143) -> int:
    """Set up, then one loop. Returns the exit code: 0, or, saved and stopped, 130 after Ctrl-C and
    `term_code` after SIGTERM."""
    processes.start()
    run, validation = settings.read(config), read_validation(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not processes.is_first())
    if note := without_flash():
        console.print(note)
    with about("config: mesh.data x mesh.fsdp"):
        mesh = sharding.make_mesh(*run.mesh)
    check_wandb(run)
    groups, held_out = read_data(run, validation.holdout, console)
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, mesh)
    check_start(training)
    validation.check_size(training.layout)
    idle = [name for name in keys.PARTS if name != keys.TRANSFORMER.name]
    console.print(f"{run.model_path}: transformer; not needed to train: {', '.join(idle)}")
    for target, names in training.targets.items():
        console.print(f"LoRA {target}: {len(names)} modules")

    folder = RunFolder(run.output_dir)
    claim_output(folder, fresh)
    with (
        Interrupt(console.print, term_code) as interrupt,
        background() as compiler,
        Checkpoints(folder.state) as checkpoints,
        Display(console, run.steps) as display,
        contextlib.ExitStack() as opened,
    ):
        names = (files.name for group in groups for files in group.samples)
        mark = fingerprint(config, source.shapes, names)
        newest, meta = continued(console, checkpoints, mark)
        if run.remat is None:
            training, _ = keeping_what_fits(training, largest(groups), device_memory())
        # Before the transformer takes the memory.
        prepared = prepare_validation(run, validation, source)
        programs = compile_steps(compiler, training, groups)
        frozen = load_base(training, source)
        batches = make_batches(training, groups)
        if newest is None:
            state = first_state(training)
        else:
            state = checkpoints.restore(newest, training.abstract_state)
            batches.state = meta["data"]
            console.print(f"continuing {run.output_dir} from step {newest}")
            export_lora(training, state, only_missing=True)
        plan = programs[largest(groups)].result().plan
        check_fits(plan, device_memory())
        console.print(summary(plan, device_memory()))

        first_step = int(state.step)
        logs = open_logs(folder, run.wandb, first_step, str(config))
        rates, peak = curves(run.optimizer), peak_flops_of_mesh(mesh)
        metrics = Metrics(folder, first_step, rates, display, logs, peak)
        opened.callback(metrics.release)
        rounds = Rounds(
            training,
            validation,
            source,
            prepared,
            held_out,
            first_step,
            display,
            metrics,
            logs,
            lambda: interrupt.asked,
        )
        interrupt.guarded = True
        rounds.catch_up(Weights(state.adapters, frozen))
        stopped = interrupt.asked
        try:
            for step in range(first_step + 1, run.steps + 1):
                if stopped:
                    break
                group, samples, batch = next(batches)
                program = programs[group.shape].result()
                placed = place_batch(training, batch)
                # An array of the host that a step took along would be sent anew in each of them.
                with jax.transfer_guard_host_to_device("disallow"):
                    state, values = program.run(state, frozen, placed)
                paths = [str(sample.files["latents"]) for sample in samples]
                metrics.add(step, values, paths, program.plan.flops.model)
                stopped = interrupt.reached(step)
                if stopped or is_saved(step, run.steps, run.checkpoint_interval):
                    save(training, checkpoints, state, batches, mark)
                if not stopped:
                    rounds.after(step, Weights(state.adapters, frozen))
            metrics.close()
        except NotFinite as error:
            save(training, checkpoints, state, batches, mark)
            raise InputError(
                f"{run.output_dir}: loss or gradient not finite three steps in a row, not "
                f"applied: {error}; the state before them is saved as step {int(state.step)}"
            ) from None
        remove_old(folder, run.keep_last_n, checkpoints)
    if stopped:
        console.print(f"stopped at step {int(state.step)}; the same command continues")
        return interrupt.code
    if first_step > run.steps:
        console.print(
            f"already at step {first_step}, beyond optimization.steps {run.steps}: "
            f"{folder.lora(first_step)}"
        )
    else:
        console.print(f"done: {folder.lora(run.steps)}")
    return 0


def check_wandb(run: Settings) -> None:
    """Raise InputError where it is asked for and not installed, before anything is loaded."""
    if run.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(
            "config: wandb.enabled is True, but wandb is not installed: uv sync --extra wandb"
        )


def continued(
    console: Console, checkpoints: Checkpoints, mark: Mapping[str, str]
) -> tuple[int | None, dict[str, Any]]:
    """The newest step and its record. Raises InputError if another run wrote it."""
    if not checkpoints.steps:
        return None, {}
    newest = checkpoints.steps[-1]
    meta = checkpoints.meta(newest)
    if changed := check_same(meta["fingerprint"], mark):
        console.print(f"changed since step {newest}: {', '.join(changed)}")
    return newest, meta


def compile_steps(
    compiler: ThreadPoolExecutor, training: Training, groups: Sequence[ShapeGroup]
) -> dict[SampleShape, Future[Program]]:
    """The step of every shape, compiled in the background while weights load; largest first."""
    shapes = sorted((group.shape for group in groups), key=latents_of, reverse=True)
    return {shape: compiler.submit(compile_step, training, shape) for shape in shapes}


@contextlib.contextmanager
def background() -> Iterator[ThreadPoolExecutor]:
    """One thread, whose work that has not begun is dropped on the way out."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def save(
    training: Training,
    checkpoints: Checkpoints,
    state: State,
    batches: Batches,
    mark: Mapping[str, str],
) -> None:
    """Write the LoRA file and the state of this step; the oldest of both go."""
    run = training.run
    remove_old(RunFolder(run.output_dir), run.keep_last_n, checkpoints)
    meta = {
        "data": batches.state,
        "lora": lora_record(training).to_metadata(),
        "fingerprint": dict(mark),
    }
    export_lora(training, state)
    checkpoints.save(state, meta)


def command() -> None:
    """The command line: this command's own flags, and the config's."""
    parser = cli.Parser(
        prog="python -m justdubit_jax.train",
        description=f"{str(__doc__).partition(chr(10))[0]} Every key of the config can be given as "
        "--config.key=value.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="Python file, e.g. configs/dub.py")
    parser.add_argument("--fresh", action="store_true", help="start over; move what is there aside")
    parser.add_argument(
        "--exit-zero-on-preemption",
        action="store_true",
        help="exit code 0, not 143, after SIGTERM has saved and stopped the run",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what a run needs, and stop")
    parser.add_argument(
        "--device-memory", type=cli.byte_count, help="for --dry-run, e.g. 80GB; default: ask"
    )
    parser.add_argument(
        "--device",
        help="for --dry-run: compile for this card, which need not be there: h100-sxm, rtx-4090, "
        "... or a .toml file (planning/cards.toml)",
    )
    parser.add_argument(
        "--advise", action="store_true", help="with --device: what each switch would give"
    )
    parser.add_argument(
        "--phase",
        nargs="+",
        choices=("step", *PHASES, "all"),
        default=["step"],
        help="with --device: other programs too; text needs the key model.text_encoder_path",
    )
    parser.add_argument("--json", type=Path, help="with --device: a file for all figures")
    parser.add_argument("--kernels", type=Path, help="with --device: a CSV file for all kernels")
    own, others = parser.parse_known_args()
    argv = ["train", "--config", own.config, *others]
    for flag, needed in (("device", "dry_run"), *((f, "device") for f in _OF_A_CARD)):
        if getattr(own, flag) and not getattr(own, needed):
            parser.error(f"--{flag} is of --{needed.replace('_', '-')}")
    if own.device:
        jax.config.update("jax_platforms", "cpu")  # what is there is not asked
        card = read_card(own.device)
        phases = [name for name in PHASES if name in own.phase or "all" in own.phase]
        read = partial(_config, argv)
        dry_run_on(card, read, phases, own.advise, own.json, own.kernels)
    elif own.dry_run:
        dry_run(cli.parse_config(argv), own.device_memory)
    else:
        sys.exit(main(cli.parse_config(argv), own.fresh, 0 if own.exit_zero_on_preemption else 143))


def _config(argv: Sequence[str], *more: str) -> ConfigDict:
    return cli.parse_config([*argv, *more])


_OF_A_CARD = "advise", "json", "kernels"  # flags that need --device


if __name__ == "__main__":
    cli.exiting(command)
