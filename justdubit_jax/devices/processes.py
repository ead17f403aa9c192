"""Several processes, one run: how they find one another, and what only the first one does.

Each process holds its own devices; arrays span all of them. Process 0 writes the files, into an
output folder that all processes see.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from justdubit_jax.devices.sharding import batch
from justdubit_jax.errors import InputError


def share[T](mesh: Mesh, items: Sequence[T]) -> list[tuple[int, T]]:
    """(row, item) of each device of this process in a batch of one item a device.

    Rows beyond the items, of which there is at least one, repeat the last.
    """
    mine = jax.process_index()
    rows = [row for row, d in enumerate(mesh.devices.flat) if d.process_index == mine]
    return [(row, items[min(row, len(items) - 1)]) for row in rows]


def spread(mesh: Mesh, rows: Sequence[Any]) -> Any:
    """Trees of arrays [1, ...], in the order of this process's `share`, as one batch."""

    def join(*leaves: Any) -> jax.Array:
        local = np.concatenate([np.asarray(leaf) for leaf in leaves])
        shape = (mesh.size, *local.shape[1:])
        return jax.make_array_from_process_local_data(batch(mesh), local, shape)

    return jax.tree.map(join, *rows)


def own_rows(tree: Any) -> list[Any]:
    """What this process holds of a batch, on the host: the inverse of `spread`."""

    def rows(x: jax.Array) -> list[np.ndarray]:
        shards = sorted(x.addressable_shards, key=lambda s: s.index[0].indices(len(x))[0])
        return [np.asarray(shard.data) for shard in shards]

    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten(row) for row in zip(*map(rows, leaves), strict=True)]


def any_process(flag: bool) -> bool:
    """Whether the flag is set on one of the processes, all of which must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def start() -> None:
    """Join the processes of this run, if the environment speaks of several.

    That is Slurm's srun, Open MPI's mpirun and Kubernetes' indexed jobs, as JAX detects them, or
    JAX_COORDINATOR_ADDRESS (host:port of process 0) with JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call
    it before the first array. Raises InputError if they do not come together.
    """
    if not _is_one_of_many() or jax.distributed.is_initialized():
        return
    given = [os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID")]
    try:
        count, index = (None if value is None else int(value) for value in given)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"environment: the processes did not come together: {error}") from None


def _is_one_of_many() -> bool:
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        return True
    # A batch script outside srun carries the job's SLURM_NTASKS, but is alone.
    counts = env.get("SLURM_STEP_NUM_TASKS", "1"), env.get("OMPI_COMM_WORLD_SIZE", "1")
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    return in_kubernetes or any(int(count) > 1 for count in counts)


def is_first() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Return when every process has come to the place of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def gathered(tree: Any) -> Any:
    """Arrays that span devices as numpy, whole, on every process."""

    def gather(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)
