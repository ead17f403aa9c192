"""From a clip pair's files to a dubbed clip, by the commands, against the reference.

What passes from stage to stage is compared, so a crossed wire shows: a part left out or zeroed, two
of a kind swapped, a setting that goes nowhere.
"""

import dataclasses
import io

import jax
import numpy as np
import pytest
from helpers.commands import REPO
from parity import commands, end_to_end
from parity.commands import NOT_DECODED
from rich.console import Console

from justdubit_jax.devices import sharding
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.runs.display import Display
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import first_state, load_base, prepare_training
from justdubit_jax.validation import samples
from justdubit_jax.validation.prepare import prepare_validation
from justdubit_jax.validation.settings import read_validation

WORLD = end_to_end.read_world(REPO / "tests/golden_e2e")
PARTS = ("frames", "wave", "latents", "mask", "text", "train_first_frame", "state", "sample")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything that preprocess, train and dub make of the files."""
    return end_to_end.chained(WORLD, tmp_path_factory.mktemp("end_to_end"))


def wrong(got: dict[str, np.ndarray], part: str) -> list[str]:
    rows = list(end_to_end.compare(WORLD, "chain", end_to_end.as_expected(WORLD, got)))
    of_part = [row for row in rows if row.tensor.partition(".")[0] == part]
    assert of_part
    return [str(row) for row in of_part if row.verdict != "ok"]


@pytest.mark.parametrize("part", PARTS)
def test_the_commands_make_what_the_reference_makes(made, part):
    assert not wrong(made, part)


def test_nothing_of_the_set_is_left_out():
    assert {name.partition(".")[0] for name in WORLD.golden.expect} == set(PARTS)


def test_dub_writes_what_was_decoded(made):
    (frames,), sound, rate = NOT_DECODED
    np.testing.assert_array_equal(made["decoded.frames"], frames)
    np.testing.assert_array_equal(made["decoded.waveform"], sound)
    np.testing.assert_array_equal(made["decoded.rates"], [float(WORLD.fps), rate])


def test_dub_draws_its_noise_by_the_seed(made):
    """The same seed is the same clip, in every version."""
    seed_keys = jax.random.split(jax.random.key(WORLD.golden.meta["seed"]))
    for key, name in zip(seed_keys, ("video", "audio"), strict=True):
        noise = made[f"own_noise.{name}"]
        np.testing.assert_array_equal(noise, jax.random.normal(key, noise.shape))


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """What a run's validation makes of the same clip and prompts, and what it writes."""
    folder, meta, bucket = tmp_path_factory.mktemp("validated"), WORLD.golden.meta, WORLD.bucket
    keys = {
        "prompts": (WORLD.row.caption,),
        "negative_prompt": meta["negative_prompt"],
        "images": (str(WORLD.row.clip),),
        "reference_videos": (str(WORLD.row.reference),),
        "video_dims": (bucket.width, bucket.height, bucket.frames),
        "frame_rate": float(WORLD.fps),
        "inference_steps": meta["steps"],
        "guidance_scale": meta["cfg_scale"],
        "seed": meta["seed"],
    }
    chosen = commands.training_config(
        WORLD,
        WORLD.folder,
        0.0,
        {f"validation.{key}": value for key, value in keys.items()}
        | {"model.text_encoder_path": WORLD.gemma, "output_dir": folder},
    )
    run, validation = settings.read(chosen), read_validation(chosen)
    strength = meta["lora"]["sampling_strength"]
    run = dataclasses.replace(
        run, lora=dataclasses.replace(run.lora, alpha=run.lora.alpha * strength)
    )
    training = prepare_training(run, WORLD.checkpoint.config, sharding.make_mesh(1, 1))
    prepared = prepare_validation(run, validation, WORLD.checkpoint)
    weights = Weights(first_state(training).adapters, load_base(training, WORLD.checkpoint))
    seen = {}

    def decoded(checkpoint, latents):
        (seen["latents"],) = latents
        frames = np.full((bucket.frames, bucket.height, bucket.width, 3), 7, np.uint8)
        return iter([((frames,), *NOT_DECODED[1:])])

    def written(path, frames, fps, sound, rate):
        seen.update(frames=frames, fps=fps, sound=sound, rate=rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "Sampler", commands.sampler_with_given_noise(WORLD, seen))
        patch.setattr(samples, "decode_samples", decoded)
        patch.setattr(samples, "write_video", written)
        display = Display(Console(file=io.StringIO()), 1)
        writer = samples.SampleWriter(training, validation, WORLD.checkpoint, prepared, display, ())
        assert len(writer.write(0, weights)) == 1
    return seen


def test_validation_samples_what_the_reference_samples(made, validated):
    names = ("sample.video_latents", "sample.audio_latents")
    assert not wrong(made | dict(zip(names, validated["latents"], strict=True)), "sample")


def test_validation_writes_what_was_decoded(validated):
    _, sound, rate = NOT_DECODED
    assert (validated["frames"] == 7).all() and validated["fps"] == WORLD.fps
    np.testing.assert_array_equal(validated["sound"], sound)
    assert validated["rate"] == rate


def test_validation_draws_its_noise_by_the_seed(made, validated):
    for name, noise in zip(("video", "audio"), validated["own_noise"], strict=True):
        np.testing.assert_array_equal(noise, made[f"own_noise.{name}"])
