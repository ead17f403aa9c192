"""Training state on disk: Orbax steps that are there whole or not at all.

OUTPUT/state/<step>/ holds `adapters` and `moments` (the optimizer's state) as trees, and `meta`
as JSON: the data position and what an export needs to know.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from justdubit_jax.errors import InputError
from justdubit_jax.lora import Adapters


class State(NamedTuple):
    """What a step changes. `step` counts the updates made."""

    adapters: Adapters
    moments: Any
    step: jax.Array


class Checkpoints:
    """The Orbax steps of a run; saves run in the background until `wait` or `close`."""

    def __init__(self, folder: Path, keep_last_n: int = -1):
        """keep_last_n: how many steps stay; -1 keeps all."""
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                "adapters": ocp.StandardCheckpointHandler(),
                "moments": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last_n if keep_last_n > 0 else None,
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, meta: Mapping[str, Any]) -> None:
        """Save a step; `meta` must be JSON-able."""
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                adapters=ocp.args.StandardSave(state.adapters),
                moments=ocp.args.StandardSave({"moments": state.moments, "step": state.step}),
                meta=ocp.args.JsonSave(dict(meta)),
            ),
        )

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """The state of a step, with the shapes, dtypes and shardings of `like`, and its meta."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                adapters=ocp.args.StandardRestore(like.adapters),
                moments=ocp.args.StandardRestore({"moments": like.moments, "step": like.step}),
                meta=ocp.args.JsonRestore(),
            ),
        )
        moments = restored["moments"]
        return State(restored["adapters"], moments["moments"], moments["step"]), restored["meta"]

    def meta(self, step: int) -> dict[str, Any]:
        """A step's meta record alone."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def adapters(self, step: int) -> Adapters:
        """A step's adapters alone, on this machine's first device."""
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise InputError(f"{self._manager.directory}: no step {step}; complete steps: {known}")
        shapes = self._manager.item_metadata(step)["adapters"]
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), dict(shapes)
        )
        args = ocp.args.Composite(adapters=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=args)["adapters"]

    def wait(self) -> None:
        """Until the last save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
