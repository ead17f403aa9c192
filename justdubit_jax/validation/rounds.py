"""What is looked at while training, and when."""

from collections.abc import Callable, Sequence
from typing import Any

from justdubit_jax.data.samples import Sample, make_buckets
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.intervals import is_due, is_saved
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.metrics import Metrics
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training.prepare import Training
from justdubit_jax.validation.holdout import Holdout
from justdubit_jax.validation.prepare import Prepared
from justdubit_jax.validation.samples import Sampler
from justdubit_jax.weights.checkpoint import Checkpoint


class Rounds:
    """What is looked at while training: samples, held-out loss, which checkpoint is the best.

    All of it draws from keys of its own and changes nothing in the training.
    """

    def __init__(
        self,
        training: Training,
        checkpoint: Checkpoint,
        prepared: Sequence[Prepared],
        held_out: Sequence[Sample],
        first_step: int,
        display: Display,
        metrics: Metrics,
        logs: Sequence[Log],
    ):
        self.interrupted: Callable[[], bool] = lambda: False
        self._run, self._first_step = training.run, first_step
        self._display, self._metrics = display, metrics
        graphdef, rule, mesh = training.graphdef, training.cross_timestep, training.mesh
        self._sampler = self._holdout = None
        if prepared:
            self._sampler = Sampler(
                training.run,
                checkpoint,
                graphdef,
                training.model.config,
                prepared,
                rule,
                mesh,
                display,
                logs,
                interrupted=lambda: self.interrupted(),
            )
        if held_out:
            buckets = make_buckets(held_out)
            self._holdout = Holdout(training.run, graphdef, buckets, rule, mesh, first_step, logs)

    def catch_up(self, adapters: lora.Adapters, frozen: Any) -> None:
        """Before the first step: the baseline, or what the run was killed in."""
        v, step = self._run.validation, self._first_step
        if step == 0:
            if v.interval and not v.skip_initial:
                self.look(0, adapters, frozen)
            return
        self._rank(step, adapters, frozen)
        if is_due(step, v.interval) and self._sampler and not self._sampler.has_written(step):
            self.look(step, adapters, frozen)

    def after(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        """After a step, and its checkpoint if there is one."""
        run = self._run
        if is_saved(step, run.steps, run.checkpoint_interval):
            self._rank(step, adapters, frozen)
        if is_due(step, run.validation.interval):
            self.look(step, adapters, frozen)

    def look(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        """Samples and held-out loss."""
        with self._metrics.pause():
            if self._sampler:
                self._sampler.write(step, adapters, frozen)
                self._metrics.curve()
            if self._holdout:
                loss = self._holdout.measure(step, adapters, frozen)["loss"]
                self._display.log(f"step {step}/{self._run.steps}  held-out loss {loss:.4f}")

    def _rank(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        if self._run.keep_best and self._holdout:
            with self._metrics.pause():
                record = self._holdout.measure(step, adapters, frozen)
                self._holdout.name_best(record, RunFolder(self._run.output_dir).lora(step))
