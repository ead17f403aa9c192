"""preprocess, train and dub on a golden set of one clip pair, with its noise in place of their own.

The commands run as they are, by their flags and config keys, so that a crossed wire in them shows.
What is random is given, and what lies between two of their stages is taken out or put in.
"""

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from parity.golden import Golden, Tensors

from justdubit_jax import cli, dub, preprocess, train
from justdubit_jax.data.batch import Batch
from justdubit_jax.data.precomputed import read
from justdubit_jax.data.rows import Columns, Row, read_rows
from justdubit_jax.devices import sharding
from justdubit_jax.dubbing.job import Request, clip_job, decode_samples, make_request
from justdubit_jax.dubbing.sample import Conditions, Sampler
from justdubit_jax.errors import InputError
from justdubit_jax.latents.shapes import LatentPair
from justdubit_jax.lora import files as lora_files
from justdubit_jax.preprocessing import encode
from justdubit_jax.preprocessing.buckets import Bucket, parse_buckets
from justdubit_jax.preprocessing.load import Loaded
from justdubit_jax.training import settings
from justdubit_jax.training.objective import Draw, Objective
from justdubit_jax.training.prepare import (
    first_state,
    load_base,
    make_batches,
    place_batch,
    prepare_training,
)
from justdubit_jax.weights.checkpoint import Checkpoint, open_checkpoint

# Where the tensors of the set lie in `.precomputed`: name -> role, tensor.
PRECOMPUTED = {
    "latents.target_video": ("latents", "latents"),
    "latents.reference_video": ("reference_latents", "latents"),
    "latents.target_audio": ("audio_latents", "latents"),
    "latents.reference_audio": ("reference_audio_latents", "latents"),
    "text.video_context": ("conditions", "video_context"),
    "text.audio_context": ("conditions", "audio_context"),
    "mask": ("masks", "masks"),
}
_CONFIG = Path(__file__).parents[2] / "configs/dub.py"


@dataclasses.dataclass(frozen=True)
class World:
    """A golden set: its folder, and what expect.safetensors says."""

    folder: Path
    golden: Golden

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.model)

    @functools.cached_property
    def row(self) -> Row:
        """Of the data set, whose only one it is."""
        columns = Columns("caption", "media_path", "reference_path", "mask_path")
        row, *others = read_rows(self.dataset, columns)
        if others:
            raise InputError(f"{self.dataset}: {1 + len(others)} rows, expected one")
        return row

    @functools.cached_property
    def bucket(self) -> Bucket:
        (bucket,) = parse_buckets(self.golden.meta["bucket"], self.checkpoint.layout)
        return bucket

    @property
    def fps(self) -> Fraction:
        return Fraction(self.golden.meta["fps"])

    @property
    def model(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def gemma(self) -> Path:
        return self.folder / "gemma"

    @property
    def lora(self) -> Path:
        return self.folder / "lora.safetensors"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset/dataset.json"


def preprocessed(world: World, output: Path, row: Loaded | None = None) -> Tensors:
    """Run preprocess into a folder, and read what it wrote; `row` takes the place of the files."""
    flags = [
        *(str(world.dataset), "--resolution-buckets", world.golden.meta["bucket"]),
        *("--model-path", str(world.model), "--text-encoder-path", str(world.gemma)),
        *("--with-audio", "--reference-column", "reference_path", "--mask-column", "mask_path"),
        *("--output-dir", str(output)),
    ]
    with contextlib.ExitStack() as stack:
        if row is not None:
            stack.enter_context(mock.patch.object(encode, "load_row", lambda *_: row))
        if preprocess.main(preprocess.parse_arguments(flags)):
            raise InputError(f"{world.dataset}: not preprocessed, see above")
    found = {}
    for name, (role, tensor) in PRECOMPUTED.items():
        found[name], _ = read(output / role / f"{world.row.name}.safetensors", tensor)
    return found


def trained(world: World, data: Path) -> Tensors:
    """One step of train on a `.precomputed` folder, without and with the first frame given."""
    found = {}
    for name, first_frame in (("train", 0.0), ("train_first_frame", 1.0)):
        if any(expected.startswith(f"{name}.") for expected in world.golden.expect):
            metrics = _one_step(world, settings.read(training_config(world, data, first_frame)))
            found |= {f"{name}.{term}": value for term, value in metrics.items()}
    return found


def _one_step(world: World, run: settings.Settings) -> Tensors:
    """Losses, gradient norm, and the velocities of all tokens that the objective asked for."""
    strength = world.golden.meta["lora"]["training_strength"]  # a config's alpha is a whole number
    adapters = dataclasses.replace(run.lora, alpha=run.lora.alpha * strength)
    run = dataclasses.replace(run, lora=adapters)
    training = prepare_training(run, world.checkpoint.config, sharding.make_mesh(*run.mesh))
    frozen, state = load_base(training, world.checkpoint), first_state(training)
    group, _, batch = next(make_batches(training, train.read_data(run)[0]))
    with (
        mock.patch.object(Objective, "draw", _given_noise(world)),
        mock.patch.object(Objective, "loss", _loss_and_predictions),
    ):
        _, metrics = training.step(state, frozen, place_batch(training, batch), group.shape.grid)
    return metrics


def training_config(
    world: World, data: Path, first_frame_p: float, changes: Mapping[str, object] | None = None
) -> ConfigDict:
    """The published run's config with what `meta` says and `changes`, on one device in float32."""
    meta, adapters = world.golden.meta, lora_files.config_of(world.lora)
    strategy, mask = "training_strategy", "training_strategy.mask_config"
    return cli.read_config(
        _CONFIG,
        {
            "model.model_path": world.model,
            "model.load_checkpoint": world.lora,
            "model.cross_timestep": meta["cross_timestep"],
            "data.preprocessed_data_root": data,
            "lora.rank": meta["lora"]["rank"],
            "lora.alpha": meta["lora"]["alpha"],
            "lora.target_modules": adapters.target_modules,
            f"{strategy}.first_frame_conditioning_p": first_frame_p,
            f"{strategy}.enable_cross_attention_masking": meta["isolate"],
            "validation.enable_cross_attention_masking": meta["isolate"],
            **{f"{mask}.{key}": value for key, value in meta["mask_loss"].items()},
            "acceleration.mixed_precision_mode": "no",
            "mesh.data": 1,
            **(changes or {}),
        },
    )


def _given_noise(world: World) -> Any:
    """`Objective.draw` with the set's sigma and noise; who gets the first frame stays drawn."""
    inputs, draw = world.golden.inputs, Objective.draw

    def given(self: Objective, key: jax.Array, batch: Batch, frames: int) -> Draw:
        drawn = draw(self, key, batch, frames)
        names = {"sigma": "sigma", "video_noise": "video_noise", "audio_noise": "audio_noise"}
        arrays = {field: jnp.asarray(inputs[f"train.{name}"]) for field, name in names.items()}
        return drawn._replace(**arrays)

    return given


_loss = Objective.loss


def _loss_and_predictions(self: Objective, model: Any, *args: Any) -> Any:
    """`Objective.loss`, whose terms also tell what the model said."""
    seen = {}

    def recorded(*streams: Any, **options: Any) -> Any:
        velocities = model(*streams, **options)
        seen.update(zip(("video_prediction", "audio_prediction"), velocities, strict=True))
        return velocities

    total, terms = _loss(self, recorded, *args)
    return total, terms | seen


# Frames, sound and rate in place of a decoder's, for sets that were trimmed of theirs.
NOT_DECODED = (np.full((1, 1, 1, 3), 7, np.uint8),), np.full((2, 1), 0.7, np.float32), 1


@dataclasses.dataclass
class Dubbed:
    """What passed between the stages of a dub, and what it would have written."""

    request: Request
    own_noise: tuple[Any, Any]  # which the set's took the place of
    conditions: Conditions
    latents: LatentPair
    frames: np.ndarray
    sound: np.ndarray
    fps: Fraction
    rate: int  # of the sound

    def tensors(self) -> Tensors:
        """By the names of the golden set."""
        found: dict[str, Any] = {
            "sample.video_latents": self.latents[0],
            "sample.audio_latents": self.latents[1],
            "decoded.frames": self.frames,
            "decoded.waveform": self.sound,
        }
        for name, stream in zip(("video", "audio"), self.conditions, strict=True):
            found[f"state.{name}.tokens"] = stream.start()
            found[f"state.{name}.positions"] = stream.positions
            found[f"state.{name}.noisy"] = ~stream.is_clean()
        return {name: np.asarray(x) for name, x in found.items()}


def sampler_with_given_noise(world: World, seen: dict[str, Any]) -> type[Sampler]:
    """A Sampler with the set's noise; `seen` gets what it conditions on, and the noise it drew."""

    class GivenNoise(Sampler):
        def conditions(self, request: Request) -> Conditions:
            video, audio = super().conditions(request)
            inputs = world.golden.inputs
            given = (
                video._replace(noise=inputs["video_noise"]),
                audio._replace(noise=inputs["audio_noise"]),
            )
            seen.update(own_noise=(video.noise, audio.noise), conditions=given)
            return given

    return GivenNoise


def dubbed(
    world: World, folder: Path, request: Request | None = None, sampled: LatentPair | None = None
) -> Dubbed:
    """Run dub with the set's noise, its clip cut to the bucket's frames; no mp4 is written.

    `request` takes the place of what is read and encoded, `sampled` that of what the decoders get.
    """
    seen: dict[str, Any] = {}

    def requested(*args: Any) -> Request:
        seen["request"] = make_request(*args) if request is None else request
        return seen["request"]

    def decoded(checkpoint: Checkpoint, latents: Sequence[LatentPair]) -> Iterator[Any]:
        (seen["latents"],) = latents
        if "decoded.frames" not in world.golden.expect:
            return iter([NOT_DECODED])
        return decode_samples(checkpoint, latents if sampled is None else [sampled])

    def written(path: Path, frames: Any, fps: Fraction, sound: Any, rate: int) -> None:
        seen.update(frames=np.concatenate(list(frames)), sound=sound, fps=fps, rate=rate)

    with contextlib.ExitStack() as stack:
        for name, replacement in {
            "clip_job": functools.partial(clip_job, max_frames=world.bucket.frames),
            "make_request": requested,
            "Sampler": sampler_with_given_noise(world, seen),
            "decode_samples": decoded,
            "write_video": written,
        }.items():
            stack.enter_context(mock.patch.object(dub, name, replacement))
        dub.main(dub_arguments(world, folder / "dubbed.mp4"))
    return Dubbed(**seen)


def dub_arguments(world: World, out: Path) -> argparse.Namespace:
    """dub's flags for what `meta` says."""
    meta, row, bucket = world.golden.meta, world.row, world.bucket
    values = {
        "video": row.reference,
        "image": row.clip,
        "prompt": row.caption,
        "negative-prompt": meta["negative_prompt"],
        "lora": world.lora,
        "lora-strength": meta["lora"]["sampling_strength"],
        "model-path": world.model,
        "text-encoder-path": world.gemma,
        "steps": meta["steps"],
        "guidance-scale": meta["cfg_scale"],
        "cross-timestep": meta["cross_timestep"],
        "seed": meta["seed"],
        "height": bucket.height,
        "width": bucket.width,
        "out": out,
    }
    flags = [str(part) for key, value in values.items() for part in (f"--{key}", value)]
    isolation = [] if meta["isolate"] else ["--no-cross-attention-masking"]
    return dub.parse_arguments([*flags, *isolation])
