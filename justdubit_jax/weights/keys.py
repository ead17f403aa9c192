"""Which checkpoint key is which parameter: one table per part, read in both directions.

A row is (checkpoint pattern, path pattern). `{}` stands for free text, and `{layer}` for the index
of a block, which on our side is the leading axis of a stacked array. Rows are tried in order and
the first that matches the whole name wins; export is the same table flipped. Tensors have the
checkpoint's shapes, so there is nothing to transform.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Part:
    """One model of a checkpoint: its name, the keys it owns and where they go."""

    name: str
    rows: tuple[tuple[str, str], ...]

    def path(self, key: str) -> tuple[str, int | None] | None:
        """Our path for a checkpoint key, and its block index; None if not of this part."""
        for theirs, ours in self.rows:
            if match := _regex(theirs).fullmatch(key):
                layer = match.groupdict().get("layer")
                return _fill(ours, match), None if layer is None else int(layer)
        return None

    def key(self, path: str, layer: int | None = None) -> str:
        """The checkpoint key of our parameter path (of block `layer` where it is stacked)."""
        for theirs, ours in self.rows:
            if (match := _regex(ours).fullmatch(path)) and ("{layer}" in theirs) == (
                layer is not None
            ):
                key = _fill(theirs, match, layer)
                if self.path(key) == (path, layer):
                    return key
        raise KeyError(f"{self.name}: no row of the key table names {path!r}")

    def is_stacked(self, path: str) -> bool:
        """Whether the parameter has a leading block axis."""
        return any(
            "{layer}" in theirs and _regex(ours).fullmatch(path) for theirs, ours in self.rows
        )


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    return re.compile(escaped.replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{\}", "(.+)"))


def _fill(pattern: str, match: re.Match[str], layer: int | None = None) -> str:
    named = set(match.re.groupindex.values())
    texts = [text for i, text in enumerate(match.groups(), 1) if i not in named]
    filled = pattern.replace("{layer}", str(layer))
    for text in texts:
        filled = filled.replace("{}", text, 1)
    return filled


# What the names of all the transformer's tensors start with, and those of the connectors.
DIFFUSION_MODEL = "model.diffusion_model."
_DIT = DIFFUSION_MODEL

_VIDEO_STATISTICS = (
    ("vae.per_channel_statistics.mean-of-means", "statistics.mean"),
    ("vae.per_channel_statistics.std-of-means", "statistics.std"),
)
_AUDIO_STATISTICS = (
    ("audio_vae.per_channel_statistics.mean-of-means", "statistics.mean"),
    ("audio_vae.per_channel_statistics.std-of-means", "statistics.std"),
)

CONNECTORS = Part(
    "connectors",
    (
        (_DIT + "video_embeddings_connector.{}", "video_connector.{}"),
        (_DIT + "audio_embeddings_connector.{}", "audio_connector.{}"),
        ("text_embedding_projection.{}", "features.{}"),
    ),
)

# The connectors' keys start like the transformer's, so the transformer's rows come behind theirs:
# `owners` asks CONNECTORS first.
TRANSFORMER = Part(
    "transformer",
    (
        (_DIT + "transformer_blocks.{layer}.audio_to_video_attn.{}", "blocks.audio_to_video.{}"),
        (_DIT + "transformer_blocks.{layer}.video_to_audio_attn.{}", "blocks.video_to_audio.{}"),
        (
            _DIT + "transformer_blocks.{layer}.scale_shift_table_a2v_ca_video",
            "blocks.video.cross_scale_shift_table",
        ),
        (
            _DIT + "transformer_blocks.{layer}.scale_shift_table_a2v_ca_audio",
            "blocks.audio.cross_scale_shift_table",
        ),
        (_DIT + "transformer_blocks.{layer}.audio_{}", "blocks.audio.{}"),
        (_DIT + "transformer_blocks.{layer}.{}", "blocks.video.{}"),
        (_DIT + "av_ca_video_scale_shift_adaln_single.{}", "video.cross_adaln.{}"),
        (_DIT + "av_ca_audio_scale_shift_adaln_single.{}", "audio.cross_adaln.{}"),
        (_DIT + "av_ca_a2v_gate_adaln_single.{}", "video.cross_gate_adaln.{}"),
        (_DIT + "av_ca_v2a_gate_adaln_single.{}", "audio.cross_gate_adaln.{}"),
        (_DIT + "audio_{}", "audio.{}"),
        (_DIT + "{}", "video.{}"),
    ),
)

VIDEO_ENCODER = Part("video_encoder", (*_VIDEO_STATISTICS, ("vae.encoder.{}", "{}")))
VIDEO_DECODER = Part("video_decoder", (*_VIDEO_STATISTICS, ("vae.decoder.{}", "{}")))
AUDIO_ENCODER = Part("audio_encoder", (*_AUDIO_STATISTICS, ("audio_vae.encoder.{}", "{}")))
AUDIO_DECODER = Part("audio_decoder", (*_AUDIO_STATISTICS, ("audio_vae.decoder.{}", "{}")))
VOCODER = Part("vocoder", (("vocoder.{}", "{}"),))

# Hugging Face's Gemma 3 folders: language_model.model.* on disk. The vision tower and the
# projector beside it are not used.
GEMMA = Part(
    "gemma",
    (
        ("language_model.model.layers.{layer}.{}", "layers.{}"),
        ("language_model.model.{}", "{}"),
    ),
)
GEMMA_UNUSED = ("vision_tower.{}", "multi_modal_projector.{}")

PARTS = {
    part.name: part
    for part in (
        CONNECTORS,
        TRANSFORMER,
        VIDEO_ENCODER,
        VIDEO_DECODER,
        AUDIO_ENCODER,
        AUDIO_DECODER,
        VOCODER,
    )
}

# Tensors of the published files that no module reads, in the reference neither: of the 19B's video
# VAE, and of the 22B's vocoder, which never goes from a spectrum back to a waveform.
UNUSED_STATISTICS = (
    "vae.per_channel_statistics.channel",
    "vae.per_channel_statistics.mean-of-stds",
    "vae.per_channel_statistics.mean-of-stds_over_std-of-means",
)
UNUSED_FOURIER_ROWS = "vocoder.mel_stft.stft_fn.inverse_basis"
UNUSED = (*UNUSED_STATISTICS, UNUSED_FOURIER_ROWS)


@functools.cache
def owners(key: str) -> list[str]:
    """Names of the parts that own a checkpoint key; VAE statistics belong to both halves.

    None if it is of no known part, or UNUSED.
    """
    if key in UNUSED:
        return []
    if CONNECTORS.path(key):
        return [CONNECTORS.name]
    return [part.name for part in PARTS.values() if part.path(key)]


def matches_any(key: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (see the module docstring) matches the whole key."""
    return any(_regex(pattern).fullmatch(key) for pattern in patterns)
