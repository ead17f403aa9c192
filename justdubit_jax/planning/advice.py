"""What to switch where a step does not fit."""

from collections.abc import Iterator

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import Remat
from justdubit_jax.planning.memory import Memory, Plan, gb
from justdubit_jax.training.settings import Settings


def check_fits(plan: Plan, limit: int | None) -> None:
    """Raise InputError, with what to switch, if the step does not fit into `limit` bytes."""
    if limit is not None and plan.memory.total > limit:
        switches = "; ".join(f"{what} ({gb(left)})" for what, left in advice(plan, limit))
        raise InputError(
            f"config: a step needs {gb(plan.memory.total)}, the device has {gb(limit)}; "
            f"in order of cost: {switches}"
        )


def advice(plan: Plan, limit: int) -> Iterator[tuple[str, int]]:
    """What to switch, in order of cost, until it fits, and the bytes needed then (estimated).

    Each switch is on top of those before it.
    """
    run, memory = plan.training.run, plan.memory
    left = memory.total
    for what, saved in _switches(run, memory, plan.training.objective.execution.remat):
        if left <= limit:
            return
        if saved > 0:
            left -= int(saved)
            yield what, left
    if left > limit:
        yield "a smaller video (preprocess --resolution-buckets), or more devices", left


def _switches(run: Settings, memory: Memory, remat: Remat) -> Iterator[tuple[str, float]]:
    """Every switch that is not on yet, and about what it saves; cheapest first."""
    state = memory.lora + memory.optimizer + memory.mean + memory.gradients
    optimizer = memory.optimizer
    if run.batch_size > 1:
        share = 1 - 1 / run.batch_size
        saved = (memory.activations + memory.workspace) * share
        yield "optimization.batch_size=1 with gradient_accumulation_steps instead", saved
    if remat in ("none", "attention", "keys", "queries"):
        yield "optimization.enable_gradient_checkpointing=True", 0.9 * memory.activations
    if run.optimizer.kind == "adamw" and run.optimizer.first_moment_dtype == "float32":
        yield "optimization.first_moment_dtype=bfloat16", optimizer / 4
        optimizer *= 3 / 4
    if run.optimizer.kind == "adamw":
        yield "optimization.optimizer_type=adamw8bit", optimizer - memory.lora / 2
        state += memory.lora / 2 - memory.optimizer
    if run.quantization is None:
        yield "acceleration.quantization=int8", memory.base * 0.49
    yield (
        "optimization.enable_gradient_checkpointing=offload",
        (0.0 if remat == "offload" else 0.9 * min(memory.activations, 0.1 * memory.base)),
    )
    if run.lora.rank > 32:
        yield "lora.rank=32", state * (1 - 32 / run.lora.rank)
    if run.quantization in (None, "int8", "fp8"):
        now = memory.base * (0.51 if run.quantization is None else 1)
        yield "acceleration.quantization=nf4", now * 0.45
