"""Training state on disk: Orbax steps that are there whole or not at all.

OUTPUT/state/<step>/ holds `adapters`, `moments` (the optimizer's state and the step) and, where it
is kept, `mean` (of the adapters) as trees, and `meta` as JSON: the data position, the
configuration's fingerprint and what an export needs to know.
"""

import contextlib
import gc
import logging
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from justdubit_jax import distributed
from justdubit_jax.errors import InputError
from justdubit_jax.lora import Adapters

_REMOVED = ".removed-"  # a step that is on its way out


@contextlib.contextmanager
def _unraisable_ignored() -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


class State(NamedTuple):
    """What a step changes. `step` counts the steps made; `mean` is the adapters' running mean."""

    adapters: Adapters
    moments: Any
    step: jax.Array
    mean: Adapters | None = None


class Checkpoints:
    """The Orbax steps of a run; a save runs in the background until the next, `wait` or `close`."""

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        if distributed.is_first():
            for path in self._folder.glob(f"{_REMOVED}*"):
                shutil.rmtree(path)
        # A failed save is raised by `wait`; its threads need not print it too.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        tree = ocp.StandardCheckpointHandler
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                **{name: tree() for name in ("adapters", "moments", "mean")},
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
        )

    @property
    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, meta: Mapping[str, Any]) -> None:
        """Save a step, unless it is there; `meta` must be JSON-able.

        Raises InputError if it or the one before cannot be written; what was complete stays so.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            return
        items = {
            "adapters": ocp.args.StandardSave(state.adapters),
            "moments": ocp.args.StandardSave({"moments": state.moments, "step": state.step}),
            "meta": ocp.args.JsonSave(dict(meta)),
        }
        if state.mean is not None:
            items["mean"] = ocp.args.StandardSave(state.mean)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failed(error) from None

    def restore(self, step: int, like: State) -> State:
        """The state of a step, with the shapes, dtypes and shardings of `like` (may be abstract).

        Raises InputError if the step is damaged.
        """
        items = {
            "adapters": ocp.args.StandardRestore(like.adapters),
            "moments": ocp.args.StandardRestore({"moments": like.moments, "step": like.step}),
        }
        if like.mean is not None:
            items["mean"] = ocp.args.StandardRestore(like.mean)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise InputError(
                f"{self._folder / str(step)}: not restored: {error}; "
                "remove it to continue from the step before"
            ) from None
        moments = restored["moments"]
        return State(
            restored["adapters"], moments["moments"], moments["step"], restored.get("mean")
        )

    def meta(self, step: int) -> dict[str, Any]:
        """A step's meta record."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def adapters(self, step: int, mean: bool = False) -> Adapters:
        """A step's adapters alone, or their mean, on this machine's first device."""
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise InputError(f"{self._folder}: no step {step}; complete steps: {known}")
        name = "mean" if mean else "adapters"
        shapes = self._manager.item_metadata(step)[name]
        if shapes is None:
            raise InputError(f"{self._folder / str(step)}: no {name}; optimization.ema_decay was 0")
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), dict(shapes)
        )
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
        return self._manager.restore(step, args=args)[name]

    def keep_only(self, steps: Collection[int]) -> None:
        """Remove the other complete steps: renamed first, so that none is ever there by half."""
        self.wait()
        removed = [step for step in self.steps if step not in steps]
        if distributed.is_first():
            for step in removed:
                moved = self._folder / f"{_REMOVED}{step}"
                (self._folder / str(step)).rename(moved)
                shutil.rmtree(moved)
        if removed:
            distributed.wait_for_all("old steps are removed")
            self._manager.reload()

    def wait(self) -> None:
        """Until the last save is complete; raises InputError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from None

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; on the way out of an error, what a save has to say is left unsaid."""
        if kind is None:
            self.wait()
        else:
            with contextlib.suppress(InputError):
                self.wait()
        self.close()

    def _failed(self, error: Exception) -> InputError:
        # What is left of the writers complains, when it is collected, that their loop is closed.
        with _unraisable_ignored():
            error.__traceback__ = None
            gc.collect()
        kept = ", ".join(map(str, self.steps)) or "none"
        reason = str(error).strip().splitlines()[0]
        return InputError(f"{self._folder}: a step was not saved: {reason}; complete steps: {kept}")
