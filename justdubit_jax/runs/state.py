"""Training state on disk: Orbax steps that are there whole or not at all.

OUTPUT/state/<step>/ holds `adapters`, `moments` (the optimizer's state and the step) and, where it
is kept, `mean` (of the adapters) as trees, and `meta` as JSON: the data position, the
configuration's fingerprint and what an export needs to know.
"""

import contextlib
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from justdubit_jax.devices import processes
from justdubit_jax.errors import InputError
from justdubit_jax.lora.adapters import Adapters
from justdubit_jax.runs.failed_save import ThreadErrors
from justdubit_jax.training.step import State

_REMOVED = ".removed-"  # a step that is on its way out


def _bytes(state: State) -> int:
    """What this process writes of a state."""
    shards = (s.data for x in jax.tree.leaves(state) for s in x.addressable_shards)
    return sum(shard.nbytes for shard in shards)


class Checkpoints:
    """The Orbax steps of a run; a save runs in the background until the next, `wait` or `close`.

    Opening removes what a killed process left of a step. With `read_only` nothing is touched, so
    that another process may be saving: only steps that were complete by then are seen.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        self._folder, self._read_only = folder.absolute(), read_only
        if processes.is_first() and not read_only:
            for path in self._folder.glob(f"{_REMOVED}*"):
                shutil.rmtree(path)
        self._thread_errors = ThreadErrors()
        tree = ocp.StandardCheckpointHandler
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                **{name: tree() for name in ("adapters", "moments", "mean")},
                "meta": ocp.JsonCheckpointHandler(),
            },
            # Its own read_only says so in the log, and leaves out no more than these two.
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._thread_errors.written
                ),
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, meta: Mapping[str, Any]) -> None:
        """Save a step, unless it is there; `meta` must be JSON-able.

        Raises InputError if it or the one before cannot be written; what was complete stays so.
        """
        assert not self._read_only, "opened to read only"
        self.wait()
        step = int(state.step)
        if step in self.steps:
            return
        needed, free = _bytes(state), shutil.disk_usage(self._folder).free
        if needed > free:
            raise self._failed(
                OSError(f"it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
            )
        items = {
            "adapters": ocp.args.StandardSave(state.adapters),
            "moments": ocp.args.StandardSave({"moments": state.moments, "step": state.step}),
            "meta": ocp.args.JsonSave(dict(meta)),
        }
        if state.mean is not None:
            items["mean"] = ocp.args.StandardSave(state.mean)
        self._thread_errors.begin()
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            self._thread_errors.failed()
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
        """A step's adapters alone, or their mean, on this machine's first device.

        Raises InputError if the step is not there, or damaged.
        """
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise InputError(f"{self._folder}: no step {step}; complete steps: {known}")
        name = "mean" if mean else "adapters"
        try:
            shapes = self._manager.item_metadata(step).get(name)
            found = None if shapes is None else self._on_first_device(step, name, dict(shapes))
        except Exception as error:
            raise InputError(f"{self._folder / str(step)}: {name} not read: {error}") from None
        if found is None:
            raise InputError(f"{self._folder / str(step)}: no {name}; optimization.ema_decay was 0")
        return found

    def _on_first_device(self, step: int, name: str, shapes: Mapping[str, Any]) -> Adapters:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), shapes
        )
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
        return self._manager.restore(step, args=args)[name]

    def keep_only(self, steps: Collection[int]) -> None:
        """Remove the other complete steps: renamed first, so that none is ever there by half."""
        assert not self._read_only, "opened to read only"
        self.wait()
        removed = [step for step in self.steps if step not in steps]
        if processes.is_first():
            for step in removed:
                moved = self._folder / f"{_REMOVED}{step}"
                (self._folder / str(step)).rename(moved)
                shutil.rmtree(moved)
        if removed:
            processes.wait_for_all("old steps are removed")
            self._manager.reload()

    def wait(self) -> None:
        """Until the last save is complete; raises InputError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._thread_errors.failed()
            raise self._failed(error) from None
        self._thread_errors.complete()

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; on the way out of an error, a save that failed as well is not mentioned."""
        if kind is None:
            self.wait()
        else:
            with contextlib.suppress(InputError):
                self.wait()
        self.close()

    def _failed(self, error: Exception) -> InputError:
        kept = ", ".join(map(str, self.steps)) or "none"
        reason = str(error).strip().splitlines()[0]
        return InputError(f"{self._folder}: a step was not saved: {reason}; complete steps: {kept}")
