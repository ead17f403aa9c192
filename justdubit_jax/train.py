"""python -m justdubit_jax.train --config configs/dub.py: train the LoRA.

OUTPUT/ gets `state/` (Orbax steps), `checkpoints/` (LoRA files) and `metrics.jsonl`. Started again
with the same output_dir, training continues from the newest step.
"""

import functools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from justdubit_jax import cli, keys, lora, objective, optim, settings, sharding, weights
from justdubit_jax.checkpoint import Checkpoints, State
from justdubit_jax.data import Batches, find_samples, make_buckets
from justdubit_jax.errors import InputError
from justdubit_jax.files import replacing
from justdubit_jax.models.transformer import CrossTimestep, Transformer, TransformerConfig
from justdubit_jax.settings import Settings

# PEFT's name of a parameter, which learning-rate patterns are searched in.
_PARAMETER_NAME = "base_model.model.{}.default.weight"


def main(config: ConfigDict) -> None:
    """Set up, then one loop."""
    run = settings.read(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    mesh = sharding.make_mesh(*run.mesh)
    buckets = make_buckets(find_samples(run.data_root, run.folders))

    source = weights.open_checkpoint(run.model_path)
    model, targets = adapted_model(source.config, run.lora)
    idle = [name for name in keys.PARTS if name != keys.TRANSFORMER.name]
    console.print(f"{run.model_path}: transformer; not needed to train: {', '.join(idle)}")
    for target, names in targets.items():
        console.print(f"LoRA {target}: {len(names)} modules")
    model = weights.load(
        source, keys.TRANSFORMER, model, run.dtype, functools.partial(sharding.weight, mesh)
    )
    graphdef, shapes, frozen = lora.split(model)
    del model

    tx, rates = make_optimizer(run, shapes)
    place = state_shardings(shapes, tx, mesh)
    state = first_state(run, shapes, tx, place)
    checkpoints = Checkpoints(run.output_dir / "state", run.keep_last_n)
    hosts = jax.process_count()
    batches = Batches(
        buckets,
        run.batch_size * mesh.size // hosts,
        run.seed,
        run.reader_threads,
        jax.process_index(),
        hosts,
    )
    cross_timestep: CrossTimestep = "other" if run.cross_timestep == "other" else "own"
    export = functools.partial(export_lora, run, cross_timestep)
    if checkpoints.steps:
        newest = checkpoints.steps[-1]
        state, meta = checkpoints.restore(newest, state)
        batches.state = meta["data"]
        console.print(f"continuing {run.output_dir} from step {newest}")
        if not lora.export_path(run.output_dir, newest).exists():
            export(state.adapters, newest)
    step_fn = make_step(run, graphdef, tx, mesh, place, cross_timestep)
    metrics = Metrics(run.output_dir / "metrics.jsonl", int(state.step), run, rates, console)

    for step in range(int(state.step) + 1, run.steps + 1):
        bucket, _, batch = next(batches)
        spread = functools.partial(jax.make_array_from_process_local_data, sharding.batch(mesh))
        state, values = step_fn(state, frozen, jax.tree.map(spread, batch), bucket.grid)
        metrics.add(step, values)
        due = run.checkpoint_interval and step % run.checkpoint_interval == 0
        if due or step == run.steps:
            checkpoints.save(
                state, {"data": batches.state, "lora": lora_record(run, cross_timestep)}
            )
            export(state.adapters, step)
            checkpoints.wait()
            remove_old_exports(run.output_dir, run.keep_last_n)
    metrics.flush()
    checkpoints.close()
    console.print(f"done: {lora.export_path(run.output_dir, int(state.step))}")


def adapted_model(
    config: Mapping[str, Any], lora_config: lora.LoRAConfig
) -> tuple[Transformer, dict[str, list[str]]]:
    """An abstract transformer with its adapters, and which modules each target matched."""
    transformer_config = TransformerConfig.from_metadata(dict(config))
    matched: dict[str, list[str]] = {}

    def build() -> Transformer:
        model = Transformer(transformer_config)
        matched.update(lora.attach(model, lora_config))
        return model

    return nnx.eval_shape(build), matched


def make_optimizer(
    run: Settings, shapes: Mapping[str, Any]
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """The optimizer of the run and, for the log, the schedule of each distinct base rate."""
    names = {
        path: [_PARAMETER_NAME.format(name) for name in lora.names(path, leaf.shape)]
        for path, leaf in shapes.items()
    }
    rates = optim.base_rates(names, run.learning_rate, run.learning_rate_groups)
    schedule = optim.linear_schedule(run.steps, **run.schedule)
    groups = {"default": run.learning_rate, **dict(run.learning_rate_groups)}
    rate_of = {name: functools.partial(schedule, np.float32(rate)) for name, rate in groups.items()}
    return optim.make_optimizer(rates, schedule, run.max_grad_norm), rate_of


def state_shardings(
    shapes: Mapping[str, Any], tx: optax.GradientTransformation, mesh: Any
) -> State:
    """Where the adapters, their moments and the step counter live."""
    place = {path: sharding.weight(mesh, path, leaf.shape) for path, leaf in shapes.items()}
    everywhere: Any = sharding.replicated(mesh)

    def of_moment(path: Any, leaf: Any) -> Any:  # moments are trees of the adapters' paths
        return place.get(getattr(path[-1], "key", ""), everywhere)

    moments = jax.tree_util.tree_map_with_path(of_moment, jax.eval_shape(tx.init, dict(shapes)))
    return State(place, moments, everywhere)


def first_state(
    run: Settings, shapes: Mapping[str, Any], tx: optax.GradientTransformation, place: State
) -> State:
    """Adapters as PEFT starts them, or from `model.load_checkpoint`; born with their shardings."""
    if run.load_checkpoint is None:
        start = jax.jit(lambda key: lora.init(shapes, key), out_shardings=place.adapters)
        adapters = start(jax.random.key(run.seed))
    else:
        file = newest_lora(run.load_checkpoint)
        adapters = jax.device_put(lora.read_file(file, shapes), place.adapters)
    moments = jax.jit(tx.init, out_shardings=place.moments)(adapters)
    return State(adapters, moments, jax.device_put(jnp.int32(0), place.step))


def make_step(
    run: Settings,
    graphdef: Any,
    tx: optax.GradientTransformation,
    mesh: Any,
    place: State,
    cross_timestep: CrossTimestep,
) -> Any:
    """The jitted step: (state, frozen, batch, grid) -> (state, metrics); state is donated."""

    def step(state: State, frozen: Any, batch: objective.Batch, grid: tuple[int, int, int]) -> Any:
        key = jax.random.fold_in(jax.random.key(run.seed), state.step)
        draw_key, dropout_key = jax.random.split(key)
        draws = objective.draw(draw_key, batch, run.sampling, run.first_frame_p, grid[0])

        def loss(adapters: lora.Adapters) -> Any:
            model = lora.merge(graphdef, adapters, frozen)
            seed_block = lora.seed_all(model, dropout_key) if run.lora.dropout else None
            return objective.loss(
                model,
                batch,
                draws,
                grid=grid,
                mask_loss=run.mask_loss,
                isolate=run.isolate,
                dtype=run.dtype,
                cross_timestep=cross_timestep,
                remat=run.remat,
                prepare_block=seed_block,
            )

        gradients, metrics = jax.grad(loss, has_aux=True)(state.adapters)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, moments = tx.update(gradients, state.moments, state.adapters)
        adapters: Any = optax.apply_updates(state.adapters, updates)
        return State(adapters, moments, state.step + 1), metrics

    return jax.jit(
        step,
        static_argnums=3,
        donate_argnums=0,
        # The frozen weights come as they were loaded.
        in_shardings=(place, None, sharding.batch(mesh)),
        out_shardings=(place, sharding.replicated(mesh)),
    )


class Metrics:
    """One JSON line a step, and a progress line.

    Values of step n are read when step n + 1 is under way, so the host never waits for the
    device. Lines beyond the step that a run continues from are dropped.
    """

    def __init__(self, path: Path, step: int, run: Settings, rates: Any, console: Console):
        self._run, self._rates, self._console = run, rates, console
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._pending: tuple[int, Any] | None = None
        self._clock = time.perf_counter()

    def add(self, step: int, values: Any) -> None:
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Write the step that is waiting, if any."""
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        names = ("loss", "loss_video", "loss_audio", "grad_norm")
        record: dict[str, Any] = {"step": step, **{name: float(values[name]) for name in names}}
        now = time.perf_counter()
        record["seconds"], self._clock = now - self._clock, now
        record["learning_rate"] = {k: float(rate(step - 1)) for k, rate in self._rates.items()}
        print(json.dumps(record), file=self._file, flush=True)
        left = (self._run.steps - step) * record["seconds"]
        line = (
            f"step {step}/{self._run.steps}  loss {record['loss']:.4f} "
            f"(video {record['loss_video']:.4f}, audio {record['loss_audio']:.4f})  "
            f"lr {record['learning_rate']['default']:.2e}  {record['seconds']:.2f} s/step  "
            f"{int(left // 3600)}:{int(left % 3600 // 60):02}:{int(left % 60):02} left"
        )
        end = "\r" if self._console.is_terminal and step < self._run.steps else "\n"
        self._console.print(line, end=end)


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from path.read_text().splitlines()


def lora_record(run: Settings, cross_timestep: CrossTimestep) -> dict[str, str]:
    """What a LoRA file says of itself in its metadata; strings, as safetensors wants them."""
    return {
        "rank": str(run.lora.rank),
        "alpha": str(run.lora.alpha),
        "cross_timestep": cross_timestep,
        "reference_downscale_factor": "1",  # ltx-pipelines reads it: reference at full size
    }


def export_lora(
    run: Settings, cross_timestep: CrossTimestep, adapters: lora.Adapters, step: int
) -> None:
    """Write the LoRA file of a step."""
    metadata = {**lora_record(run, cross_timestep), "step": str(step)}
    lora.write_file(lora.export_path(run.output_dir, step), adapters, run.export_dtype, metadata)


def remove_old_exports(output_dir: Path, keep_last_n: int) -> None:
    """Keep the newest LoRA files, as many as Orbax keeps steps."""
    files = sorted((output_dir / "checkpoints").glob("lora_weights_step_*.safetensors"))
    for path in files[:-keep_last_n] if keep_last_n > 0 else []:
        path.unlink()


def newest_lora(path: Path) -> Path:
    """The file itself, or the one with the highest step in a folder."""
    if path.is_file():
        return path
    files = [p for p in path.rglob("*step_*.safetensors") if p.stem.rpartition("_")[2].isdigit()]
    if not files:
        raise InputError(f"config: model.load_checkpoint: {path} has no *step_*.safetensors")
    return max(files, key=lambda p: int(p.stem.rpartition("_")[2]))


if __name__ == "__main__":
    cli.run(main)
