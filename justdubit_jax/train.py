"""python -m justdubit_jax.train --config configs/dub.py: train the LoRA.

OUTPUT/ gets `state/` (Orbax steps), `checkpoints/` (LoRA files) and `metrics.jsonl`. Started again
with the same output_dir, training continues from the newest step; `--fresh` starts over.
`--dry-run` says what a run needs, and reads no weights.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from justdubit_jax import cli
from justdubit_jax.data.batch import Batch
from justdubit_jax.data.batches import Batches
from justdubit_jax.data.samples import Bucket, Sample, find_samples, make_buckets, read_sample
from justdubit_jax.devices import processes, sharding
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.attention import attention
from justdubit_jax.planning.advice import check_fits
from justdubit_jax.planning.memory import (
    Program,
    compile_step,
    device_memory,
    peak_flops,
    sample_like_validation,
)
from justdubit_jax.planning.show import show, summary
from justdubit_jax.planning.stand_in import flash_stand_in
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
from justdubit_jax.training.prepare import Training, first_state, prepare_training
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.step import State
from justdubit_jax.validation.holdout import split_holdout
from justdubit_jax.validation.prepare import prepare_validation
from justdubit_jax.validation.rounds import Rounds
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint, checkpoint_config, open_checkpoint
from justdubit_jax.weights.load import load_weights


def main(config: ConfigDict, fresh: bool = False) -> None:
    """Set up, then one loop."""
    processes.start()
    run = settings.read(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not processes.is_first())
    mesh = sharding.make_mesh(*run.mesh)
    buckets, held_out = read_data(run)
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, mesh)
    idle = [name for name in keys.PARTS if name != keys.TRANSFORMER.name]
    console.print(f"{run.model_path}: transformer; not needed to train: {', '.join(idle)}")
    for target, names in training.targets.items():
        console.print(f"LoRA {target}: {len(names)} modules")

    folder = RunFolder(run.output_dir)
    claim_output(folder, fresh)
    with (
        Interrupt() as interrupt,
        background() as compiler,
        Checkpoints(folder.state) as checkpoints,
        Display(console, run.steps) as display,
    ):
        names = (sample.name for bucket in buckets for sample in bucket.samples)
        mark = fingerprint(config, source.shapes, names)
        newest, meta = continued(console, checkpoints, mark)
        prepared = prepare_validation(run, source)  # before the transformer takes the memory
        programs = compile_steps(compiler, training, buckets)
        frozen = load_base(training, source)
        batches = make_batches(run, buckets, mesh)
        if newest is None:
            state = first_state(training)
        else:
            state = checkpoints.restore(newest, training.abstract_state)
            batches.state = meta["data"]
            console.print(f"continuing {run.output_dir} from step {newest}")
            export_lora(training, state, only_missing=True)
        plan = programs[largest(buckets)].result().plan
        check_fits(plan, device_memory())
        console.print(summary(plan, device_memory()))

        first_step = int(state.step)
        logs = open_logs(folder, run.wandb, first_step, str(config))
        rates, peak = curves(run.optimizer), peak_flops(mesh)
        metrics = Metrics(folder, first_step, rates, display, logs, peak)
        rounds = Rounds(training, source, prepared, held_out, first_step, display, metrics, logs)
        rounds.interrupted = lambda: interrupt.asked
        interrupt.guarded = True
        rounds.catch_up(state.adapters, frozen)
        stopped = interrupt.asked
        try:
            for step in range(first_step + 1, run.steps + 1):
                if stopped:
                    break
                bucket, samples, batch = next(batches)
                program = programs[bucket].result()
                state, values = program.run(state, frozen, spread(training, batch))
                paths = [str(sample.files["latents"]) for sample in samples]
                metrics.add(step, values, paths, program.plan.flops.model)
                stopped = interrupt.reached(step)
                if stopped or is_saved(step, run.steps, run.checkpoint_interval):
                    save(training, checkpoints, state, batches, mark)
                if not stopped:
                    rounds.after(step, state.adapters, frozen)
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
    else:
        console.print(f"done: {folder.lora(run.steps)}")


def dry_run(config: ConfigDict, memory: int | None) -> None:
    """Print what the largest step needs; `memory` is the device's bytes, else what it tells."""
    run = settings.read(config, dry_run=True)
    mesh = sharding.make_mesh(*run.mesh)
    attend = attention if jax.default_backend() == "gpu" else flash_stand_in
    training = prepare_training(run, checkpoint_config(run.model_path), mesh, attend)
    if run.data_root is not None:
        bucket = largest(read_data(run)[0])
        sample, grid = read_sample(bucket.samples[0]), bucket.grid
    else:
        sample, grid = sample_like_validation(run, training.model.config)
    program = compile_step(training, sample, grid)
    show(Console(highlight=False, soft_wrap=True), program.plan, memory or device_memory())


def read_data(run: Settings) -> tuple[list[Bucket], list[Sample]]:
    """The buckets to train on, and the samples that are held out."""
    assert run.data_root is not None, "only a dry run may lack it"
    samples = find_samples(run.data_root, run.folders)
    samples, held_out = split_holdout(samples, run.validation.holdout, run.seed)
    if not samples:
        raise InputError("config: validation.holdout leaves no sample to train on")
    return make_buckets(samples), held_out


def largest(buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of the most latents, whose step takes the most memory."""
    return max(buckets, key=latents_of)


def latents_of(bucket: Bucket) -> int:
    """Latents of a sample's picture."""
    return math.prod(bucket.grid)


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
    compiler: ThreadPoolExecutor, training: Training, buckets: Sequence[Bucket]
) -> dict[Bucket, Future[Program]]:
    """Every bucket's step, largest first, compiled in the background while weights load."""
    order = sorted(buckets, key=latents_of, reverse=True)
    return {
        bucket: compiler.submit(compile_step, training, read_sample(bucket.samples[0]), bucket.grid)
        for bucket in order
    }


@contextlib.contextmanager
def background() -> Iterator[ThreadPoolExecutor]:
    """One thread, whose work that has not begun is dropped on the way out."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_base(training: Training, source: Checkpoint) -> Any:
    """The frozen weights, on their devices."""
    run, place = training.run, functools.partial(sharding.weight, training.mesh)
    part, model = keys.TRANSFORMER, training.model
    loaded = load_weights(source, part, model, run.dtype, place, run.quantization)
    return lora.split(loaded)[2]


def make_batches(run: Settings, buckets: Sequence[Bucket], mesh: Any) -> Batches:
    """Batches of this process's share of the samples of a step."""
    hosts = jax.process_count()
    size = run.accumulation * run.batch_size * mesh.size // hosts
    return Batches(buckets, size, run.seed, run.reader_threads, jax.process_index(), hosts)


def spread(training: Training, batch: Batch) -> Batch:
    """This process's samples as its part of the step's batch, in micro-batches."""
    place = sharding.micro_batches(training.mesh)

    def put(x: Any) -> jax.Array:
        micro = x.reshape(training.run.accumulation, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(place, micro)

    return jax.tree.map(put, batch)


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
    parser.add_argument("--dry-run", action="store_true", help="say what a run needs, and stop")
    parser.add_argument(
        "--device-memory", type=cli.parse_bytes, help="for --dry-run, e.g. 80GB; default: ask"
    )
    own, others = parser.parse_known_args()
    config = cli.parse_config(["train", "--config", own.config, *others])
    if own.dry_run:
        dry_run(config, own.device_memory)
    else:
        main(config, own.fresh)


if __name__ == "__main__":
    cli.exiting(command)
