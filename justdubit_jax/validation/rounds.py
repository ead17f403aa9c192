"""What is looked at while training, and when."""

from collections.abc import Callable, Sequence

from justdubit_jax.data.samples import SampleFiles
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.intervals import is_due, is_saved
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.metrics import Metrics
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training.prepare import Training
from justdubit_jax.validation.holdout import Holdout
from justdubit_jax.validation.prepare import Prepared
from justdubit_jax.validation.samples import SampleWriter
from justdubit_jax.validation.settings import Validation
from justdubit_jax.weights.checkpoint import Checkpoint


class Rounds:
    """What is looked at while training: samples, held-out loss, which checkpoint is the best.

    All of it draws from keys of its own and changes nothing in the training. `interrupted` is asked
    between pieces of the sampling, and ends it.
    """

    def __init__(
        self,
        training: Training,
        validation: Validation,
        checkpoint: Checkpoint,
        prepared: Sequence[Prepared],
        held_out: Sequence[SampleFiles],
        first_step: int,
        display: Display,
        metrics: Metrics,
        logs: Sequence[Log],
        interrupted: Callable[[], bool],
    ):
        self._run, self._validation, self._first_step = training.run, validation, first_step
        self._display, self._metrics = display, metrics
        self._writer = self._holdout = None
        if prepared:
            self._writer = SampleWriter(
                training, validation, checkpoint, prepared, display, logs, interrupted
            )
        if held_out:
            self._holdout = Holdout(training, held_out, first_step, logs)

    def catch_up(self, weights: lora.Weights) -> None:
        """Before the first step: the baseline, or what the run was killed in."""
        v, step = self._validation, self._first_step
        if step == 0:
            if v.interval and not v.skip_initial:
                self.look(0, weights)
            return
        self._rank(step, weights)
        if is_due(step, v.interval) and self._writer and not self._writer.has_written(step):
            self.look(step, weights)

    def after(self, step: int, weights: lora.Weights) -> None:
        """After a step, and its checkpoint if there is one."""
        run = self._run
        if is_saved(step, run.steps, run.checkpoint_interval):
            self._rank(step, weights)
        if is_due(step, self._validation.interval):
            self.look(step, weights)

    def look(self, step: int, weights: lora.Weights) -> None:
        """Samples and held-out loss."""
        with self._metrics.pause():
            if self._writer:
                self._writer.write(step, weights)
                self._metrics.curve()
            if self._holdout:
                loss = self._holdout.measure(step, weights)["loss"]
                self._display.log(f"step {step}/{self._run.steps}  held-out loss {loss:.4f}")

    def _rank(self, step: int, weights: lora.Weights) -> None:
        if self._validation.keep_best and self._holdout:
            with self._metrics.pause():
                record = self._holdout.measure(step, weights)
                self._holdout.name_best(record, RunFolder(self._run.output_dir).lora(step))
