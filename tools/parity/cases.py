"""What verify_parity.py computes: one function for each kind of golden file, in CASES.

A function takes a golden file and the names of its wanted tensors (both without `expect.`) and
returns at least those that it can make, computed with the project's own loader, modules and
functions. Sizes and settings come from the file; none is written here.
"""

import functools
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from flax import nnx
from parity.golden import (
    LAYOUT,
    Golden,
    Tensors,
    load,
    load_transformer,
    modality,
    references,
)
from parity.sampling import denoising, schedule_and_steps, skip_of
from parity.training import training

from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.models import mel, tokens
from justdubit_jax.models.attention import frequency_grid, rotary_table
from justdubit_jax.models.transformer import Modality, Transformer
from justdubit_jax.training import objective
from justdubit_jax.weights import keys

_apply = nnx.jit(lambda model, *args: model(*args))
_log_mel = jax.jit(mel.log_mel, static_argnums=1)
_rotary = jax.jit(rotary_table, static_argnums=(1, 3, 4))


def audio_mel(golden: Golden, wanted: Collection[str]) -> Tensors:
    meta = golden.meta
    config = mel.MelConfig(meta["sample_rate"], meta["n_fft"], meta["hop"], meta["mel_bins"])
    return {"log_mel_16k": _log_mel(golden.inputs["waveform_16k"], config)}


def audio_vae(golden: Golden, wanted: Collection[str]) -> Tensors:
    mel_config = mel.MelConfig.from_metadata(golden.weights.config)
    encoder = load(golden, keys.AUDIO_ENCODER)
    decoder = load(golden, keys.AUDIO_DECODER)
    found, inputs, cast = {}, golden.inputs, golden.cast
    for name in wanted:
        task, _, what = name.partition(".")
        if task == "encode_waveform":
            found[name] = _apply(encoder, cast(_log_mel(inputs["waveform_16k"], mel_config)))
        elif task == "encode":
            found[name] = _apply(encoder, cast(inputs["mel"][:, :, : _length(what)]))
        else:
            found[name] = _apply(decoder, cast(inputs["latent"][:, :, : _length(what)]))
    return found


def _length(name: str) -> int | None:
    """17 of "f17", 12 of "f12_cropped_to_9"; None, which is everything, of other names."""
    match = re.match(r"[ft](\d+)", name)
    return int(match[1]) if match else None


def gemma(golden: Golden, wanted: Collection[str]) -> Tensors:
    model = load(golden, keys.GEMMA)
    mask = golden.inputs["attention_mask"]
    states = _apply(model, golden.inputs["input_ids"], mask)
    return {f"hidden_states.{i}": state * mask[..., None] for i, state in enumerate(states)}


def text(golden: Golden, wanted: Collection[str]) -> Tensors:
    model = load(golden, keys.CONNECTORS)
    found = {}
    for prompt in sorted({name.rpartition(".")[0] for name in wanted}):
        states = np.moveaxis(golden.inputs[f"{prompt}.hidden_states"], -1, 0)
        mask = golden.inputs[f"{prompt}.attention_mask"]
        video, audio = _apply(model, golden.cast(states), mask)
        found |= {f"{prompt}.video_context": video, f"{prompt}.audio_context": audio}
        found[f"{prompt}.mask"] = np.ones_like(mask)  # registers fill the padding
    return found


def video_vae(golden: Golden, wanted: Collection[str]) -> Tensors:
    part = functools.cache(functools.partial(load, golden))
    inputs = golden.inputs

    @functools.cache
    def decode(latent: str, frames: int | None) -> np.ndarray:
        latents = golden.cast(inputs[latent][:, :, :frames])
        return np.asarray(_apply(part(keys.VIDEO_DECODER), latents), np.float32)

    found = {}
    for name in wanted:
        task, _, what = name.partition(".")
        untiled = task.startswith("untiled")
        if task.endswith("encode"):
            video = inputs["tiled_space_video" if what == "space" else "video"]
            found[name] = _apply(
                part(keys.VIDEO_ENCODER), golden.cast(video[:, :, : _length(what)])
            )
            continue
        video = decode("tiled_latent" if untiled else "latent", _length(what))
        if what == "grid":
            stride = golden.meta["stride"] * (2 if untiled else 1)
            found[name] = video[..., 1::stride, 2::stride]
        elif what == "statistics":
            x = video.astype(np.float64)
            found[name] = np.array([x.mean(), x.std(), np.abs(x).mean(), x.min(), x.max()])
        else:
            found[name] = video
    return found


def vocoder(golden: Golden, wanted: Collection[str]) -> Tensors:
    model = load(golden, keys.VOCODER)
    mels = {name: golden.inputs[name.replace("waveform", "mel")] for name in wanted}
    return {name: _apply(model, golden.cast(mel)) for name, mel in mels.items()}


def token_layout(golden: Golden, wanted: Collection[str]) -> Tensors:
    meta, inputs = golden.meta, golden.inputs
    video, audio = inputs["video_latent"], inputs["audio_latent"]
    rates = dict(zip(meta["fps_names"], meta["shapes"]["fps"], strict=True))
    # Lengths are counted in doubles, but input.pixel_fps and input.durations are float32.
    doubles = {float(np.float32(fps)): fps for fps in rates.values()}
    frames, fps = inputs["pixel_frames"].tolist(), inputs["pixel_fps"].tolist()
    seconds = [n / doubles.get(rate, rate) for n, rate in zip(frames, fps, strict=True)]
    counts = inputs["sequence_lengths"].tolist()
    draws = zip(inputs["normal_samples"], counts, strict=True)
    audio_positions = LAYOUT.audio_positions(audio.shape[2])
    positions = {name: LAYOUT.video_positions(video.shape[2:], r) for name, r in rates.items()}
    found = {
        "video_tokens": tokens.video_tokens(video),
        "audio_tokens": tokens.audio_tokens(audio),
        "audio_positions": np.tile(audio_positions, (len(audio), 1, 1, 1)),
        "audio_latent_frames": [LAYOUT.audio_latent_frames(s) for s in meta["durations"]],
        "audio_latent_frames_of_video": [LAYOUT.audio_latent_frames(s) for s in seconds],
        "video_latent_frames": [LAYOUT.video_latent_frames(n) for n in frames],
        "logit_normal_shift": [objective.logit_shift(n) for n in counts],
        "logit_normal_timesteps": [objective.shifted_logit_normal(x, n) for x, n in draws],
    }
    for name, bounds in positions.items():
        found[f"video_positions.{name}"] = np.tile(bounds, (len(video), 1, 1, 1))
    middle = positions[meta["fps_names"][1]].mean(-1)[None]
    for name in wanted:
        if name.startswith("rope."):
            _, heads, _, half = golden.expect[name].shape
            width, max_pos = 2 * heads * half, (20.0, 2048.0, 2048.0)
            table = _rotary(middle, max_pos, frequency_grid(10000.0, 3, width), width, heads)
            found[name] = table[name.endswith(".sin")].swapaxes(1, 2)
    found |= schedule_and_steps(golden, wanted)
    return {name: np.asarray(value) for name, value in found.items()}


def transformer(golden: Golden, wanted: Collection[str]) -> Tensors:
    return _velocities(golden, wanted, load_transformer(golden))


def cross_mask(golden: Golden, wanted: Collection[str]) -> Tensors:
    return _velocities(golden, wanted, load_transformer(golden), isolate=True)


def lora_forward(golden: Golden, wanted: Collection[str]) -> Tensors:
    graphdef, shapes, frozen = lora.split(load_transformer(golden, adapted=True))
    adapters = lora_files.read_file(golden.beside("adapter_file"), shapes)
    return _velocities(golden, wanted, lora.merge(graphdef, adapters, frozen))


def _velocities(
    golden: Golden, wanted: Collection[str], model: Any, isolate: bool = False
) -> Tensors:
    """Velocities of both modalities in every variant that is named before them."""
    found = {}
    isolated = references(golden, "video"), references(golden, "audio")
    batch = len(golden.inputs["video.latent"])
    for variant in sorted({name.removesuffix(name.split(".")[-1]) for name in wanted}):
        text_mask = variant != "no_text_mask."
        video, audio = _forward(
            model,
            modality(golden, "video", text_mask),
            modality(golden, "audio", text_mask),
            cross_timestep="own" if variant == "per_token_cross." else "other",
            isolated=isolated if isolate or variant == "cross_mask." else (0, 0),
            skip=skip_of(variant, model.config.layers, batch),
        )
        found |= {f"{variant}video_velocity": video, f"{variant}audio_velocity": audio}
    return found


@functools.partial(nnx.jit, static_argnames=("cross_timestep", "isolated"))
def _forward(model: Transformer, video: Modality, audio: Modality, **options: Any) -> Any:
    return model(video, audio, **options)


CASES: dict[str, Callable[[Golden, Collection[str]], Tensors]] = {
    "audio_mel": audio_mel,
    "audio_vae": audio_vae,
    "cross_mask_19b": cross_mask,
    "cross_mask_22b": cross_mask,
    "denoise_19b": denoising,
    "gemma": gemma,
    "lora_19b": lora_forward,
    "text_19b": text,
    "text_22b": text,
    "tokens": token_layout,
    "train_19b": training,
    "transformer_19b": transformer,
    "transformer_22b": transformer,
    "video_vae_20": video_vae,
    "video_vae_23": video_vae,
    "vocoder_20": vocoder,
    "vocoder_23": vocoder,
}
