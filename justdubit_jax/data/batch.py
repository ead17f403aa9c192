"""The tokens that a model is trained on: of one sample, of a batch, of a step's micro-batches.

Arrays of NumPy or JAX, or their shapes.
All three have the same fields and differ in their leading axes: a Sample has none, a Batch
[samples, ...], and MicroBatches [micro-batches, samples, ...], which follow one another in time.
Their sizes without these axes are a SampleShape: what a compiled step is for.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from justdubit_jax.errors import InputError


class StreamTokens(NamedTuple):
    """Tokens of one modality, float32; positions cover [reference | target].

    `*b` are the leading axes of what it is part of. `context_len` counts the text tokens in use;
    None means all of them.
    """

    target: Float[Array, "*b t c"]
    reference: Float[Array, "*b r c"]
    positions: Float[Array, "*b n rt 2"]
    context: Float[Array, "*b s e"]
    context_len: Int[Array, "*b"] | None = None


class Sample(NamedTuple):
    """One sample. `face_mask` is in 0..1 per target video token; None means no mask loss."""

    video: StreamTokens
    audio: StreamTokens
    face_mask: Float[Array, " t"] | None


class MicroBatches(NamedTuple):
    """What one step takes: [micro-batches, samples, ...]."""

    video: StreamTokens
    audio: StreamTokens
    face_mask: Float[Array, "m b t"] | None

    @property
    def parts(self) -> int:
        return self.video.target.shape[0]


class Batch(NamedTuple):
    """Samples that go through the model together: [samples, ...]."""

    video: StreamTokens
    audio: StreamTokens
    face_mask: Float[Array, "b t"] | None

    @property
    def size(self) -> int:
        return self.video.target.shape[0]

    def in_micro_batches(self, count: int) -> MicroBatches:
        """The samples in their order, cut into `count` parts of equal size."""
        if self.size % count:
            raise ValueError(f"{self.size} samples are not {count} equal micro-batches")
        return MicroBatches(*jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), self))


@dataclasses.dataclass(frozen=True)
class StreamShape:
    """Counts of tokens of one modality, and their channels; `axes` of a position."""

    target: int
    reference: int
    channels: int
    axes: int
    text: int
    text_channels: int

    @property
    def tokens(self) -> int:
        """Reference and target."""
        return self.reference + self.target

    def structs(self, lead: tuple[int, ...], place: Sharding | None) -> StreamTokens:
        def struct(*shape: int) -> Any:
            return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32, sharding=place)

        return StreamTokens(
            target=struct(self.target, self.channels),
            reference=struct(self.reference, self.channels),
            positions=struct(self.axes, self.tokens, 2),
            context=struct(self.text, self.text_channels),
        )


@dataclasses.dataclass(frozen=True)
class SampleShape:
    """Sizes of a sample; `grid` is the target's latent (frames, rows, columns)."""

    grid: tuple[int, int, int]
    video: StreamShape
    audio: StreamShape
    has_mask: bool

    def sample(self) -> Sample:
        """The shapes of a sample's arrays."""
        return Sample(*self._structs((), None))

    def batch(self, size: int) -> Batch:
        """The shapes of a batch's arrays."""
        return Batch(*self._structs((size,), None))

    def micro_batches(self, count: int, size: int, place: Sharding) -> MicroBatches:
        """The shapes of the arrays of `count` micro-batches of `size` samples."""
        return MicroBatches(*self._structs((count, size), place))

    def check(self, sample: Sample, name: str) -> None:
        """Raises InputError if the sample is of other sizes: its files changed meanwhile."""
        got, want = (jax.tree.map(lambda x: x.shape, x) for x in (sample, self.sample()))
        if got != want:
            raise InputError(f"{name}: its files have changed since the training started")

    def _structs(self, lead: tuple[int, ...], place: Sharding | None) -> tuple[Any, ...]:
        mask: Any = jax.ShapeDtypeStruct((*lead, self.video.target), jnp.float32, sharding=place)
        streams = (stream.structs(lead, place) for stream in (self.video, self.audio))
        return *streams, mask if self.has_mask else None
