"""What verify_parity.py computes for the list `sampling`: schedule, guidance, steps, denoising."""

import re
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from parity.golden import Golden, Tensors, load_transformer, references

from justdubit_jax.errors import InputError
from justdubit_jax.models.block import Skip
from justdubit_jax.sampling import schedule
from justdubit_jax.sampling.guidance import Guidance, SamplingSettings
from justdubit_jax.sampling.loop import Conditioned, denoise, predict
from justdubit_jax.sampling.schedule import euler_step, sigmas

# The scales of `guide.multi_modal*`, which are in no `meta`: LTX-2's own for video, and for audio
# without rescaling.
_MULTI_MODAL = {
    "guide.multi_modal": Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7),
    "guide.multi_modal_no_rescale": Guidance(cfg=7.0, stg=1.0, modality=3.0),
}
_PREDICTIONS = ("cond", "uncond", "perturbed", "modality", "sample")
_EULER_STEPS = 8  # of the schedule whose single steps are `euler.*`


def schedule_and_steps(golden: Golden, wanted: Collection[str]) -> Tensors:
    """Tensors of the kind "tokens": the sigmas, one Euler step, combinations of predictions."""
    meta = golden.meta["guidance"]
    guidances = _MULTI_MODAL | {
        "guide.cfg": Guidance(cfg=meta["cfg"]),
        "guide.stg": Guidance(stg=meta["stg"]),
    }
    inputs: list[Any] = [golden.inputs.get(f"guide.{key}") for key in _PREDICTIONS]
    plain, *others, sample = inputs
    found: dict[str, Any] = {}
    for name in wanted:
        if name in guidances:
            found[name] = guidances[name].combine(plain, *others)
        elif name in ("to_denoised", "to_velocity"):
            found[name] = getattr(schedule, name)(sample, plain, meta["velocity_sigma"])
        elif match := re.fullmatch(r"euler\.step(\d+)", name):
            levels = sigmas(_EULER_STEPS)[int(match[1]) :]
            found[name] = euler_step(sample, plain, levels[0], levels[1])
        elif match := re.fullmatch(r"sigmas\.latent(\d+)\.steps(\d+)", name):
            shape = golden.meta["shapes"]["latents"][int(match[1])]
            found[name] = sigmas(int(match[2]), int(np.prod(shape[2:])))
        elif match := re.fullmatch(r"sigmas\.default_tokens\.steps(\d+)", name):
            found[name] = sigmas(int(match[1]))
    return found


def skip_of(variant: str, layers: int, batch: int) -> Skip | None:
    """Attention left out in a variant of the kind "transformer_19b"."""
    nothing, everything = jnp.zeros((layers, batch), bool), jnp.ones((layers, batch), bool)
    if variant == "stg.":
        one = nothing.at[1, 0].set(True)  # block 1 of sample 0
        return Skip(one, one, nothing, nothing)
    return Skip(nothing, nothing, everything, everything) if variant == "isolated." else None


def denoising(golden: Golden, wanted: Collection[str]) -> Tensors:
    """Final tokens of every variant, and the first guided prediction of some."""
    model = load_transformer(golden)
    video, audio = _conditioned(golden, "video"), _conditioned(golden, "audio")
    start, levels = (video.start(), audio.start()), golden.inputs["sigmas"]
    found: dict[str, Any] = {}
    for variant in sorted({name.split(".")[0] for name in wanted}):
        settings = _settings(golden, variant)
        final = _denoise(model, video, audio, levels, settings)
        found |= {f"{variant}.video": final[0], f"{variant}.audio": final[1]}
        first = f"{variant}.denoised0."
        if any(name.startswith(first) for name in wanted):
            v, a = _predict(model, video, audio, start, levels[0], settings)
            found |= {f"{first}video": v, f"{first}audio": a}
    return found


_denoise = nnx.jit(denoise, static_argnums=4)
_predict = nnx.jit(predict, static_argnums=5)


def _settings(golden: Golden, variant: str) -> SamplingSettings:
    video = audio = Guidance(cfg=golden.meta["cfg_scale"])
    if variant.startswith("multi_modal"):
        video, audio = (_guidance(golden.meta["multi_modal"][key]) for key in ("video", "audio"))
    return SamplingSettings(
        video=video,
        audio=audio,
        isolate="cross_mask" in variant,
        cross_timestep="own" if "per_token_cross" in variant else "other",
        dtype=golden.dtype,
        batched=True,
    )


def _guidance(scales: dict[str, Any]) -> Guidance:
    """The reference perturbs the self-attention of a modality only where its own STG is on."""
    return Guidance(
        cfg=scales["cfg_scale"],
        stg=scales["stg_scale"],
        modality=scales["modality_scale"],
        rescale=scales["rescale_scale"],
        stg_blocks=tuple(scales["stg_blocks"]) if scales["stg_scale"] else (),
    )


def _conditioned(golden: Golden, name: str) -> Conditioned:
    fields = ("noise", "ref", "positions", "context", "negative_context")
    stream = Conditioned(*(golden.inputs[f"{name}.{field}"] for field in fields))
    if references(golden, name) != stream.reference.shape[1]:
        raise InputError(f"input.{name}.target: expected {stream.reference.shape[1]} references")
    return stream
