"""How many floating-point operations a training step takes, and how many a GPU can do.

Counted are matrix products and attention, a multiply-add as two: 2 t i o for a linear of i inputs
and o outputs over t tokens, 4 t s d for attention of t queries to s keys of total width d. The rest
(norms, modulation, rotary, the optimizer) is bound by memory, not arithmetic.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from justdubit_jax.models.transformer_config import StreamConfig, TransformerConfig

# Flash attention computes the scores again before its four gradient products.
_ATTENTION_BACKWARD = 2.5


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Tokens of one sample; `video` and `audio` include the reference's."""

    video: int
    audio: int
    text: int
    video_reference: int
    audio_reference: int


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of one step for one sample. `recompute` is what rematerialisation repeats."""

    forward: float
    backward: float
    recompute: float

    @property
    def model(self) -> float:
        """What the mathematics needs: the numerator of MFU."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """What the device does."""
        return self.model + self.recompute


class _Linear(NamedTuple):
    """One matrix product; `name` is the reference's, within its block."""

    name: str
    tokens: int
    d_in: int
    d_out: int
    grad_in: bool  # whether its input depends on an adapter

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.d_in * self.d_out


class _Scores(NamedTuple):
    """One attention: q kᵀ and the weights times v."""

    queries: int
    keys: int
    width: int

    @property
    def flops(self) -> float:
        return 4.0 * self.queries * self.keys * self.width


def step_flops(
    config: TransformerConfig,
    counts: TokenCounts,
    *,
    rank: int,
    targets: Sequence[str],
    remat: bool,
    isolated: bool,
) -> StepFlops:
    """Operations of one training step for one sample; a batch takes as many times more.

    `targets` are the adapted modules as lora.target_modules matches them; adapters outside the
    blocks are not counted (below 0.1%). `remat` repeats the blocks' forward pass. `isolated` keeps
    reference tokens out of the attention between the modalities.
    """
    linears, scores = _block(config, counts, isolated)
    adapted = [x for x in linears if any(x.name == t or x.name.endswith(f".{t}") for t in targets)]
    attention = sum(s.flops for s in scores)
    forward = sum(x.flops for x in linears) + attention
    backward = sum(x.flops for x in linears if x.grad_in) + _ATTENTION_BACKWARD * attention
    for x in adapted:
        down, up = 2.0 * x.tokens * x.d_in * rank, 2.0 * x.tokens * x.d_out * rank
        forward += down + up
        backward += 2 * up + (2 if x.grad_in else 1) * down  # of the weight, and of the input
    ends = [
        *_ends("", config, config.video, counts.video, counts.text),
        *_ends("audio_", config, config.audio, counts.audio, counts.text),
    ]
    return StepFlops(
        forward=config.layers * forward + sum(x.flops for x in ends),
        backward=config.layers * backward + sum(x.flops for x in ends if x.grad_in),
        recompute=config.layers * forward if remat else 0.0,
    )


def _block(
    config: TransformerConfig, counts: TokenCounts, isolated: bool
) -> tuple[list[_Linear], list[_Scores]]:
    video, audio = config.video.dim, config.audio.dim
    tokens = counts.video, counts.audio
    v = counts.video - (counts.video_reference if isolated else 0)
    a = counts.audio - (counts.audio_reference if isolated else 0)
    linears, scores = [], []
    for prefix, dim, count in (("", video, tokens[0]), ("audio_", audio, tokens[1])):
        linears += _attention(f"{prefix}attn1", dim, dim, dim, count, count)
        linears += _attention(f"{prefix}attn2", dim, dim, dim, count, counts.text, grad_keys=False)
        linears += [
            _Linear(f"{prefix}ff.net.0.proj", count, dim, 4 * dim, True),
            _Linear(f"{prefix}ff.net.2", count, 4 * dim, dim, True),
        ]
        scores += [_Scores(count, count, dim), _Scores(count, counts.text, dim)]
    linears += _attention("audio_to_video_attn", video, audio, audio, v, a)
    linears += _attention("video_to_audio_attn", audio, video, audio, a, v)
    return linears, [*scores, _Scores(v, a, audio), _Scores(a, v, audio)]


def _attention(
    name: str,
    dim: int,
    context_dim: int,
    inner: int,
    queries: int,
    keys: int,
    grad_keys: bool = True,
) -> list[_Linear]:
    return [
        _Linear(f"{name}.to_q", queries, dim, inner, True),
        _Linear(f"{name}.to_k", keys, context_dim, inner, grad_keys),
        _Linear(f"{name}.to_v", keys, context_dim, inner, grad_keys),
        _Linear(f"{name}.to_out.0", queries, inner, dim, True),
    ]


def _ends(
    prefix: str, config: TransformerConfig, stream: StreamConfig, tokens: int, text: int
) -> list[_Linear]:
    """Into the blocks and out of them. Modulations are computed for two timesteps a sample."""
    dim = stream.dim
    return [
        _Linear(f"{prefix}patchify_proj", tokens, stream.in_channels, dim, False),
        _Linear(f"{prefix}caption_projection.linear_1", text, config.caption_channels, dim, False),
        _Linear(f"{prefix}caption_projection.linear_2", text, dim, dim, False),
        *(
            layer
            for rows in (6, 4, 1)
            for layer in (
                _Linear("emb.timestep_embedder.linear_1", 2, 256, dim, False),
                _Linear("emb.timestep_embedder.linear_2", 2, dim, dim, False),
                _Linear("linear", 2, dim, rows * dim, False),
            )
        ),
        _Linear(f"{prefix}proj_out", tokens, dim, stream.out_channels, True),
    ]


# Dense bfloat16 tensor-core peaks (float32 accumulation) by words of the device's name, in TFLOP/s,
# from NVIDIA's data sheets. The first that is found counts, so variants stand first.
_PEAKS = (
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H200 NVL", 835),
    ("GH200", 989),
    ("H100", 989),
    ("H200", 989),
    ("H800", 989),
    ("H20", 148),
    ("GB200", 2500),
    ("B200", 2250),
    ("A100", 312),
    ("A800", 312),
    ("A40", 150),
    ("A10G", 70),
    ("A10", 125),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
    ("RTX A6000", 155),
    ("RTX 6000 Ada", 364),
    ("RTX 5090", 210),
    ("RTX 4090", 165),
    ("RTX 3090", 71),
)


def peak_flops(device_kind: str) -> float | None:
    """Operations per second of a device by its jax name ("NVIDIA H100 80GB HBM3"), if known."""
    found = (peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_kind))
    return next((peak * 1e12 for peak in found), None)
