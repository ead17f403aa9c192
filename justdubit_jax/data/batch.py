"""The tokens of one sample and of many."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Stream(NamedTuple):
    """Tokens of one modality of a batch, float32; positions cover [reference | target]."""

    target: Float[Array, "b t c"]
    reference: Float[Array, "b r c"]
    positions: Float[Array, "b n rt 2"]
    context: Float[Array, "b s e"]
    context_len: Int[Array, " b"] | None = None


class Batch(NamedTuple):
    """A training batch. `face_mask` is in 0..1 per target video token; None means no mask loss."""

    video: Stream
    audio: Stream
    face_mask: Float[Array, "b t"] | None
