"""The golden set of one clip pair, from its files to decoded pictures and sound.

A folder of `expect.safetensors` (inputs, expectations and, in `meta`, all settings and limits),
`checkpoint.safetensors`, `lora.safetensors`, `gemma/` and `dataset/dataset.json`. What is compared
is made by the commands themselves (parity/commands.py), twice: `by_stage` gives each stage the
stored results of the one before it, `chained` only the files.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from flax import nnx
from parity import commands
from parity.commands import PRECOMPUTED, Dubbed, World
from parity.golden import Golden, Tensors
from parity.table import Row

from justdubit_jax.clips.read import read_video
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.data.precomputed import TENSORS, save
from justdubit_jax.dubbing.job import Encoded, Job, Request, encode_jobs
from justdubit_jax.latents.text import load_tokenizer
from justdubit_jax.models.gemma import Gemma
from justdubit_jax.preprocessing.buckets import pool_mask
from justdubit_jax.preprocessing.load import Loaded, load_row
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_gemma
from justdubit_jax.weights.load import load_weights
from justdubit_jax.weights.parts import build_part, load_part

FILES = ("expect.safetensors", "checkpoint.safetensors", "lora.safetensors")
FILES += ("gemma/config.json", "dataset/dataset.json")

# Frames as they are read and scaled have no limit in `meta`. In levels, mean and maximum: another
# rounding, and from the files on also another decoder of H.264.
_FRAME_LIMITS = {
    "limit": {"mean_levels": 0.01, "max_levels": 1},
    "chain_limit": {"mean_levels": 0.5, "max_levels": 2},
}


def recognised(folder: Path) -> bool:
    """Whether a folder holds such a set."""
    return all((folder / name).is_file() for name in FILES)


def read_world(folder: Path) -> World:
    """Raises InputError if a file is not readable."""
    return World(folder, Golden.read(folder / FILES[0]))


def by_stage(world: World, folder: Path) -> Tensors:
    """Each stage from what is stored of the one before it."""
    expect, layout = world.golden.expect, world.checkpoint.layout
    found = read_files(world) | _stored_prompts(world)
    made = commands.preprocessed(world, folder / "made", _stored_row(world))
    found |= {name: x for name, x in made.items() if name.startswith("latents")}
    found["mask"] = pool_mask(expect["frames.mask"].mean(-1, dtype=np.float32) / 255, layout)
    request = _stored_request(world)
    (encoded,) = encode_jobs(world.checkpoint, [request.job])
    found["latents.first_frame"] = np.asarray(encoded.image)
    _store_sample(world, folder / "stored")
    found |= commands.trained(world, folder / "stored")
    video, audio = (expect[f"sample.{name}_latents"] for name in ("video", "audio"))
    return found | commands.dubbed(world, folder, request, (video, audio)).tensors()


def chained(world: World, folder: Path) -> Tensors:
    """Everything from the files on, as the commands do it one after the other."""
    found = read_files(world) | _caption(world)
    found |= commands.preprocessed(world, folder)
    found |= commands.trained(world, folder)
    return found | of_dub(commands.dubbed(world, folder))


def of_dub(dub: Dubbed) -> Tensors:
    """What a dub made by the names of the set, its own encoding among it."""
    names = ("text.negative_video_context", "text.negative_audio_context")
    assert dub.request.negative is not None
    found = dict(zip(names, dub.request.negative, strict=True)) | dub.tensors()
    return found | {"latents.first_frame": np.asarray(dub.request.encoded.image)}


# What each run is compared by, and how it is computed; the file of --out has the run's name.
RUNS: Mapping[str, tuple[str, Callable[[World, Path], Tensors]]] = {
    "expect": ("limit", by_stage),
    "chain": ("chain_limit", chained),
}


def runs_of(world: World) -> list[str]:
    """A set that was trimmed lacks what the stages start from."""
    return ["chain"] if "every" in world.golden.meta else list(RUNS)


def compute(world: World, run: str) -> Tensors:
    """What one of RUNS makes, by the names and in the types of the expectations."""
    with tempfile.TemporaryDirectory() as folder, in_float32():
        return as_expected(world, RUNS[run][1](world, Path(folder)))


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """The commands in float32, of which the expectations are; on a GPU theirs is bfloat16."""
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("justdubit_jax.") and hasattr(module, "default_dtype"):
                stack.enter_context(mock.patch.object(module, "default_dtype", lambda: jnp.float32))
        yield


def as_expected(world: World, found: Tensors) -> Tensors:
    """Of what a run made: what is expected, as it is expected."""
    expect = world.golden.expect
    return {
        name: _kept(world, name, np.asarray(x)).astype(expect[name].dtype)
        for name, x in sorted(found.items())
        if name in expect
    }


def _kept(world: World, name: str, tensor: np.ndarray) -> np.ndarray:
    """Of a set that was trimmed: `meta.every` has the step and the axis of what was kept."""
    if name not in (every := world.golden.meta.get("every", {})):
        return tensor
    step, axis = every[name]
    return tensor[(slice(None),) * axis + (slice(None, None, step),)]


def compare(world: World, run: str, got: Tensors) -> Iterator[Row]:
    """Errors of all expected tensors; those that the set gives no limit are only told of."""
    meta, limit = world.golden.meta, RUNS[run][0]
    for name, want in world.golden.expect.items():
        is_frame = name.startswith("frames.") or name == "decoded_source_frame"
        fair = _FRAME_LIMITS[limit] if is_frame else meta[limit].get(name)
        if fair is None:
            yield Row(name, 0.0, np.inf, "for information, not computed")
        elif name not in got:
            yield Row(name, np.nan, np.nan, "not computed")
        elif got[name].shape != want.shape:
            shapes = f"shape {list(got[name].shape)}, expected {list(want.shape)}"
            yield Row(name, np.nan, np.nan, shapes)
        elif isinstance(fair, Mapping):
            levels = np.abs(got[name].astype(np.int32) - want)
            yield Row(name, float(levels.mean()), fair["mean_levels"], "levels, mean")
            if fair["max_levels"] is not None:
                yield Row(name, float(levels.max()), fair["max_levels"], "levels, maximum")
        else:
            yield Row(name, relative(got[name], want), fair)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """||got - want|| / ||want||."""
    difference = np.linalg.norm(got.astype(np.float64) - want)
    return float(difference / max(float(np.linalg.norm(want.astype(np.float64))), 1e-30))


def read_files(world: World) -> Tensors:
    """Frames and sounds in the shape of the bucket; and a frame of the clip as it is decoded."""
    row, bucket, layout = world.row, world.bucket, world.checkpoint.layout
    item = load_row(row, [bucket], layout.sample_rate, layout)
    assert row.mask is not None
    mask = read_video(row.mask, bucket.frames).frames
    mask = resize_and_crop(mask, bucket.height, bucket.width).mean(-1, keepdims=True)
    found = {
        "frames.target": item.frames,
        "frames.reference": item.reference_frames,
        "frames.mask": mask.round().astype(np.uint8),
        "wave.target": item.sound,
        "wave.reference": item.reference_sound,
    }
    if (want := world.golden.expect.get("decoded_source_frame")) is not None:
        # Which one it is, `meta` does not say: the nearest.
        frames = read_video(row.clip).frames
        distances = [np.abs(frame - want.astype(np.float32)).mean() for frame in frames]
        found["decoded_source_frame"] = frames[int(np.argmin(distances))]
    return {name: np.asarray(x) for name, x in found.items()}


def _stored_prompts(world: World) -> Tensors:
    """Hidden states from the stored tokens, and contexts from the stored hidden states.

    Those of the negative prompt are not stored: its contexts are made from its tokens.
    """
    inputs, model = world.golden.inputs, load_gemma(world)
    connectors = load_part(world.checkpoint, keys.CONNECTORS, jnp.float32)
    stored = np.moveaxis(world.golden.expect["text.hidden_states"], 1, 0)  # state, token, channel
    mask, negative = inputs["prompt.mask"], inputs["negative.mask"]
    padded = np.pad(stored, ((0, 0), (mask.shape[1] - stored.shape[1], 0), (0, 0)))
    states = {
        "text": (padded[:, None], mask),
        "text.negative": (_apply(model, inputs["negative.ids"], negative), negative),
    }
    tokens = inputs["prompt.ids"], mask
    found = {"text.hidden_states": real_tokens(_apply(model, *tokens), mask)}
    for name, made in states.items():
        joint = "_" if name.endswith("negative") else "."
        video, audio = _apply(connectors, *made)
        found[f"{name}{joint}video_context"] = np.asarray(video)[0]
        found[f"{name}{joint}audio_context"] = np.asarray(audio)[0]
    return found


def _caption(world: World) -> Tensors:
    """Hidden states of the caption, by the tokenizer that the commands take."""
    model = load_gemma(world)
    ids, mask = load_tokenizer(world.gemma, model.config.vocab_size)([world.row.caption])
    return {"text.hidden_states": real_tokens(_apply(model, ids, mask), mask)}


def load_gemma(world: World) -> Gemma:
    files = open_gemma(world.gemma)
    model = build_part(keys.GEMMA, files.config, files.shapes)
    return load_weights(files, keys.GEMMA, model, jnp.float32)


def real_tokens(states: Any, mask: np.ndarray) -> np.ndarray:
    """[state, 1, token, channel] of a padded prompt -> [real token, state, channel]."""
    return np.moveaxis(np.asarray(states)[:, 0], 0, 1)[mask[0] != 0]


_apply = nnx.jit(lambda model, *args: model(*args))


def _stored_row(world: World) -> Loaded:
    """What preprocess would have read."""
    expect, mask = world.golden.expect, world.golden.expect["mask"]
    return Loaded(
        row=world.row,
        bucket=world.bucket,
        fps=world.fps,
        frames=expect["frames.target"],
        reference_frames=expect["frames.reference"],
        mask=mask,
        sound=expect["wave.target"],
        reference_sound=expect["wave.reference"],
    )


def _stored_request(world: World) -> Request:
    """What dub would have read and encoded."""
    expect, bucket = world.golden.expect, world.bucket
    job = Job(
        frames=bucket.frames,
        height=bucket.height,
        width=bucket.width,
        fps=world.fps,
        reference=expect["frames.reference"],
        sound=expect["wave.reference"],
        image=expect["frames.target"][:1],
    )
    parts = ("reference_video", "reference_audio", "first_frame")
    prompt, negative = (
        (expect[f"text.{which}video_context"], expect[f"text.{which}audio_context"])
        for which in ("", "negative_")
    )
    encoded = Encoded(*(expect[f"latents.{part}"] for part in parts))
    return Request(job, encoded, prompt, negative, world.golden.meta["seed"])


def _store_sample(world: World, folder: Path) -> None:
    """The sample that preprocess would have written."""
    metadata = {"fps": repr(float(world.fps))}
    for role, tensors in TENSORS.items():
        names = {of: name for name, of in PRECOMPUTED.items() if of[0] == role}
        stored = {tensor: world.golden.expect[names[role, tensor]] for tensor in tensors}
        save(folder, role, world.row.name, stored, metadata)
