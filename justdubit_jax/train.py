"""python -m justdubit_jax.train --config configs/dub.py: train the LoRA.

OUTPUT/ gets `state/` (Orbax steps), `checkpoints/` (LoRA files) and `metrics.jsonl`. Started again
with the same output_dir, training continues from the newest step.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console

from justdubit_jax import (
    cli,
    keys,
    lora,
    objective,
    optim,
    report,
    settings,
    sharding,
    validate,
    weights,
)
from justdubit_jax.checkpoint import Checkpoints, State
from justdubit_jax.data import Batches, find_samples, make_buckets
from justdubit_jax.errors import InputError
from justdubit_jax.metrics import Metrics, open_logs
from justdubit_jax.models.transformer import CrossTimestep
from justdubit_jax.settings import Settings

# PEFT's name of a parameter, which learning-rate patterns are searched in.
_PARAMETER_NAME = "base_model.model.{}.default.weight"


def main(config: ConfigDict) -> None:
    """Set up, then one loop."""
    run = settings.read(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    mesh = sharding.make_mesh(*run.mesh)
    samples = find_samples(run.data_root, run.folders)
    samples, held_out = validate.split_holdout(samples, run.validation.holdout, run.seed)
    if not samples:
        raise InputError("config: validation.holdout leaves no sample to train on")
    buckets = make_buckets(samples)

    source = weights.open_checkpoint(run.model_path)
    model, targets = lora.adapted_model(source.config, run.lora)
    idle = [name for name in keys.PARTS if name != keys.TRANSFORMER.name]
    console.print(f"{run.model_path}: transformer; not needed to train: {', '.join(idle)}")
    for target, names in targets.items():
        console.print(f"LoRA {target}: {len(names)} modules")
    prepared = validate.prepare(run, source)  # before the transformer takes the memory
    model = weights.load(
        source,
        keys.TRANSFORMER,
        model,
        run.dtype,
        functools.partial(sharding.weight, mesh),
        run.quantization,
    )
    graphdef, shapes, frozen = lora.split(model)
    transformer_config = model.config
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
    first_step = int(state.step)
    step_fn = make_step(run, graphdef, tx, mesh, place, cross_timestep)
    logs = open_logs(run, first_step, str(config))
    with report.Display(console, run.steps) as display:
        metrics = Metrics(run, first_step, rates, display, logs)
        sampler = validate.Sampler(
            run, source, graphdef, transformer_config, prepared, cross_timestep, display, logs
        )
        holdout = validate.Holdout(run, graphdef, make_buckets(held_out), cross_timestep, logs)

        def look(step: int) -> None:
            """Samples and held-out loss; they draw from their own keys and change nothing."""
            with metrics.pause():
                if prepared:
                    sampler.write(step, state.adapters, frozen)
                    metrics.curve()
                if held_out:
                    loss = holdout.measure(step, state.adapters, frozen)["loss"]
                    display.log(f"step {step}/{run.steps}  held-out loss {loss:.4f}")

        if run.validation.interval and not run.validation.skip_initial and first_step == 0:
            look(0)
        for step in range(first_step + 1, run.steps + 1):
            bucket, _, batch = next(batches)
            spread = functools.partial(jax.make_array_from_process_local_data, sharding.batch(mesh))
            state, values = step_fn(state, frozen, jax.tree.map(spread, batch), bucket.grid)
            metrics.add(step, values)
            due = run.checkpoint_interval and step % run.checkpoint_interval == 0
            if due or step == run.steps:
                record = {"data": batches.state, "lora": lora_record(run, cross_timestep)}
                checkpoints.save(state, record)
                export(state.adapters, step)
                checkpoints.wait()
                if run.keep_best:
                    file = lora.export_path(run.output_dir, step)
                    holdout.name_best(holdout.measure(step, state.adapters, frozen), file)
                remove_old_exports(run.output_dir, run.keep_last_n)
            if run.validation.interval and step % run.validation.interval == 0:
                look(step)
        metrics.close()
    checkpoints.close()
    console.print(f"done: {lora.export_path(run.output_dir, int(state.step))}")


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
    """Keep the newest LoRA files, as many as Orbax keeps steps, and the best one."""
    files = sorted((output_dir / "checkpoints").glob("lora_weights_step_*.safetensors"))
    best = validate.best_file(output_dir)
    for path in files[:-keep_last_n] if keep_last_n > 0 else []:
        if path.name != best:
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
