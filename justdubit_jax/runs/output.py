"""The folder of a run: what lies where, what is kept."""

import json
from pathlib import Path
from typing import Any

from justdubit_jax import files
from justdubit_jax.devices import processes
from justdubit_jax.errors import InputError
from justdubit_jax.lora import files as lora_files
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training.prepare import Training
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.step import State

# What `--fresh` moves to OUTPUT/previous/1 and so on.
_OF_A_RUN = ("state", "checkpoints", "samples", "tensorboard", "wandb", "best.json")
_OF_A_RUN += ("metrics.jsonl", "validation.jsonl")


def claim_output(output: Path, fresh: bool) -> None:
    """Make the folder ready: leftovers of killed processes go, and with `fresh` a run moves aside.

    Raises InputError if there are LoRA files that a new run would overwrite.
    """
    if processes.is_first():
        files.remove_leftovers(output)
        made = [output / name for name in _OF_A_RUN if (output / name).exists()]
        if fresh and made:
            aside = output / "previous"
            numbers = [int(p.name) for p in aside.glob("*") if p.name.isdigit()]
            aside /= str(max(numbers, default=0) + 1)
            aside.mkdir(parents=True)
            for path in made:
                path.rename(aside / path.name)
        elif not (output / "state").exists() and any((output / "checkpoints").glob("lora_*")):
            raise InputError(
                f"{output}: LoRA files of a run without its state/; choose another output_dir, or "
                "--fresh, which moves them to previous/"
            )
    processes.wait_for_all("the output folder is ready")


def lora_record(training: Training) -> dict[str, str]:
    """What a LoRA file says of itself in its metadata; strings, as safetensors wants them."""
    return {
        "rank": str(training.run.lora.rank),
        "alpha": str(training.run.lora.alpha),
        "cross_timestep": training.objective.cross_timestep,
        "reference_downscale_factor": "1",  # ltx-pipelines reads it: reference at full size
    }


def export_lora(training: Training, state: State, only_missing: bool = False) -> None:
    """Write the LoRA file of a step, and that of the running mean beside it."""
    run, step = training.run, int(state.step)
    metadata = {**lora_record(training), "step": str(step)}
    for adapters, mean in ((state.adapters, False), (state.mean, True)):
        path = lora_files.export_path(run.output_dir, step, mean)
        if adapters is None or (only_missing and path.exists()):
            continue
        tensors = processes.gathered(adapters)
        if processes.is_first():
            lora_files.write_file(path, tensors, run.export_dtype, metadata)


def remove_old(run: Settings, checkpoints: Checkpoints) -> None:
    """Keep the newest complete steps and their LoRA files, and the best."""
    if run.keep_last_n < 1:
        return
    checkpoints.wait()
    kept = set(checkpoints.steps[-run.keep_last_n :])
    if (best := best_step(run.output_dir)) is not None:
        kept.add(best)
    checkpoints.keep_only(kept)
    if processes.is_first():
        for path in (run.output_dir / "checkpoints").glob("lora_weights_step_*.safetensors"):
            if lora_files.step_of(path) not in kept:
                path.unlink()


def is_due(step: int, interval: int) -> bool:
    """Whether something happens at a step that happens every `interval` steps; 0 is never."""
    return bool(interval) and step % interval == 0


def best_step(output: Path) -> int | None:
    """The step that best.json names."""
    best = read_best(output)
    return None if best is None else best["step"]


def read_best(output: Path) -> dict[str, Any] | None:
    path = output / "best.json"
    return json.loads(path.read_text()) if path.exists() else None
