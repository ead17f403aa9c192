"""Snake activations between two low-pass filters, and the resampling by them.

A periodic activation makes harmonics above what the sample rate holds; so it runs at twice the
rate, whose upper half is then filtered away. The filters are the checkpoint's. Letters in shape
annotations are those of vocoder.py.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/vocoder.py, after
NVIDIA/BigVGAN (alias_free_activation).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.models.layers import Frozen

_RATIO = 2
_TAPS = 12  # of the published filters; they have no key in the config


class Snake(nnx.Module):
    """x + sin²(e^alpha x) / e^beta of each channel, at twice the rate."""

    def __init__(self, channels: int):
        self.act = nnx.Dict(
            {"alpha": Frozen(jnp.zeros(channels)), "beta": Frozen(jnp.zeros(channels))}
        )
        self.upsample = nnx.Dict({"filter": Frozen(jnp.zeros((1, 1, _TAPS)))})
        lowpass = nnx.Dict({"filter": Frozen(jnp.zeros((1, 1, _TAPS)))})
        self.downsample = nnx.Dict({"lowpass": lowpass})

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b c t"]:
        x = upsampled(x, self.upsample["filter"][...][0, 0], _RATIO, rim=_TAPS // _RATIO - 1)
        alpha, beta = (
            jnp.exp(self.act[name][...].astype(x.dtype))[None, :, None] for name in self.act
        )
        x = x + jnp.sin(alpha * x) ** 2 / (beta + 1e-9)
        return downsampled(x, self.downsample["lowpass"]["filter"][...][0, 0], _RATIO)


def upsampled(
    x: Float[Array, "b c t"], taps: Float[Array, " k"], ratio: int, rim: int
) -> Float[Array, "b c u"]:
    """`ratio` samples for one: zeros between them, then a filter centred on the first of them.

    `rim` samples are repeated at both ends beforehand.
    """
    kernel = len(taps)
    # A sample's response begins this much ahead of it.
    ahead = (kernel - ratio) // 2 if kernel % 2 == 0 else kernel // 2
    length = ratio * x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, 0), (rim, rim)), mode="edge")
    # Every output of a transposed convolution that any sample reaches; cut to those of the input.
    y = _filtered(ratio * x, taps[::-1], edges=(kernel - 1, kernel - 1), zeros=ratio)
    return y[..., ratio * rim + ahead :][..., :length]


def downsampled(
    x: Float[Array, "b c t"], taps: Float[Array, " k"], ratio: int
) -> Float[Array, "b c u"]:
    """A filter, of which every `ratio`-th sample is kept; the ends repeated."""
    kernel = len(taps)
    rims = kernel // 2 - (kernel + 1) % 2, kernel // 2
    x = jnp.pad(x, ((0, 0), (0, 0), rims), mode="edge")
    return _filtered(x, taps, stride=ratio)


def _filtered(
    x: Array, taps: Array, edges: tuple[int, int] = (0, 0), stride: int = 1, zeros: int = 1
) -> Array:
    """Each channel by itself."""
    flat = rearrange(x, "b c t -> (b c) 1 t")
    y = jax.lax.conv_general_dilated(
        flat,
        taps.astype(x.dtype)[None, None],
        window_strides=(stride,),
        padding=[edges],
        lhs_dilation=(zeros,),
        dimension_numbers=("NCH", "OIH", "NCH"),
    )
    return rearrange(y, "(b c) 1 t -> b c t", b=len(x))
