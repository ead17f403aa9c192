"""Endless shuffled batches of samples, read ahead by Grain."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from justdubit_jax.data.batch import Batch, Sample
from justdubit_jax.data.samples import SampleFiles, ShapeGroup, read_sample
from justdubit_jax.models.tokens import Layout

# Without end, but the lengths of all groups together must fit into 63 bits.
_EPOCHS = 2**32


@dataclasses.dataclass(frozen=True)
class _Source:
    """Random access to one group for Grain: (group index, sample index, sample)."""

    index: int
    group: ShapeGroup
    layout: Layout

    def __len__(self) -> int:
        return len(self.group.samples)

    def __getitem__(self, index: int) -> tuple[np.int32, np.int32, Sample]:
        files = self.group.samples[index]
        sample = read_sample(files, self.layout)
        self.group.shape.check(sample, files.name)
        return np.int32(self.index), np.int32(index), sample


class Batches:
    """Endless shuffled batches; `state` is the position, a small JSON-able record.

    Each group is shuffled anew every epoch and cut into batches across epochs, so no sample is
    dropped; groups take turns in proportion to their sizes. `host` of `hosts` reads every hosts-th
    sample.
    """

    def __init__(
        self,
        groups: Sequence[ShapeGroup],
        layout: Layout,
        batch_size: int,
        seed: int,
        threads: int,
        host: int = 0,
        hosts: int = 1,
    ):
        parts = [
            grain.MapDataset.source(_Source(i, group, layout))
            .shuffle(seed=seed + i)
            .repeat(_EPOCHS)[host::hosts]
            .batch(batch_size)
            for i, group in enumerate(groups)
        ]
        sizes = [len(group.samples) for group in groups]
        mixed = grain.MapDataset.mix(parts, weights=sizes) if len(parts) > 1 else parts[0]
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self._groups = groups
        self._samples = batch_size * hosts
        self._iterator = iter(mixed.to_iter_dataset(options))

    def __iter__(self) -> Iterator[tuple[ShapeGroup, list[SampleFiles], Batch]]:
        return self

    def __next__(self) -> tuple[ShapeGroup, list[SampleFiles], Batch]:
        """A batch's group, the files of its samples, and the samples stacked."""
        indices, samples, stacked = next(self._iterator)
        group = self._groups[int(indices[0])]
        return group, [group.samples[i] for i in samples], Batch(*stacked)

    @property
    def state(self) -> dict[str, Any]:
        """The position: batches taken by every host, and samples in one of all hosts."""
        return {**self._iterator.get_state(), "samples": self._samples}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        taken = dict(state)
        # Other batches begin within the one that holds the first sample not yet seen.
        before = taken.pop("samples")
        taken["next_index"] = taken["next_index"] * before // self._samples
        self._iterator.set_state(taken)
