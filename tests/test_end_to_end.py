"""From a clip pair's files to a dubbed clip, by the commands, against the reference.

What passes from stage to stage is compared, so a crossed wire shows: a part left out or zeroed, two
of a kind swapped, a setting that goes nowhere.
"""

import dataclasses
import io
from collections.abc import Sequence

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
# What each command makes of the set's tensors; together they are all.
READ = ("frames.", "wave.")
ENCODED = ("mask", "text.video", "text.audio")
ENCODED += ("latents.target", "latents.reference")
STEPPED = ("train_first_frame.",)
DUBBED = ("latents.first_frame", "text.negative", "state.", "sample.")


def wrong(got: dict[str, np.ndarray], prefixes: tuple[str, ...]) -> list[str]:
    """The lines of the table that are not within their limit."""
    rows = list(end_to_end.compare(WORLD, "chain", end_to_end.as_expected(WORLD, got)))
    asked = [row for row in rows if row.tensor.startswith(prefixes)]
    assert asked
    return [str(row) for row in asked if row.verdict != "ok"]


def test_nothing_of_the_set_is_left_out():
    everything = (*READ, *ENCODED, *STEPPED, *DUBBED)
    assert all(name.startswith(everything) for name in WORLD.golden.expect)
    assert all(any(n.startswith(prefix) for n in WORLD.golden.expect) for prefix in everything)


def test_clips_are_read_as_the_reference_reads_them():
    assert not wrong(end_to_end.read_files(WORLD), READ)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """The `.precomputed` folder, and what is in it."""
    folder = tmp_path_factory.mktemp("precomputed")
    return folder, commands.preprocessed(WORLD, folder)


def test_preprocess_makes_what_the_reference_makes(preprocessed):
    assert not wrong(preprocessed[1], ENCODED)


def test_a_step_on_these_files_is_the_references(preprocessed):
    assert not wrong(commands.trained(WORLD, preprocessed[0]), STEPPED)


@pytest.fixture(scope="module")
def dubbed(tmp_path_factory):
    return commands.dubbed(WORLD, tmp_path_factory.mktemp("dubbed"))


def test_dub_samples_what_the_reference_samples(dubbed):
    assert not wrong(end_to_end.of_dub(dubbed), DUBBED)


def test_dub_writes_what_was_decoded(dubbed):
    (frames,), sound, rate = NOT_DECODED
    np.testing.assert_array_equal(dubbed.frames, frames)
    np.testing.assert_array_equal(dubbed.sound, sound)
    assert (dubbed.fps, dubbed.rate) == (WORLD.fps, rate)


def by_seed(like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The noise of video and audio: the same seed is the same clip, in every version."""
    seed_keys = jax.random.split(jax.random.key(WORLD.golden.meta["seed"]))
    return [jax.random.normal(key, x.shape) for key, x in zip(seed_keys, like, strict=True)]


def test_dub_draws_its_noise_by_the_seed(dubbed):
    jax.tree.map(np.testing.assert_array_equal, list(dubbed.own_noise), by_seed(dubbed.own_noise))


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


def test_validation_samples_what_the_reference_samples(validated):
    names = ("sample.video_latents", "sample.audio_latents")
    assert not wrong(dict(zip(names, validated["latents"], strict=True)), ("sample.",))


def test_validation_writes_what_was_decoded(validated):
    _, sound, rate = NOT_DECODED
    assert (validated["frames"] == 7).all() and validated["fps"] == WORLD.fps
    np.testing.assert_array_equal(validated["sound"], sound)
    assert validated["rate"] == rate


def test_validation_draws_its_noise_by_the_seed(validated):
    noise = validated["own_noise"]
    jax.tree.map(np.testing.assert_array_equal, list(noise), by_seed(noise))


@pytest.mark.deep
def test_stages_start_from_what_is_stored(tmp_path):
    """verify_parity's other run, on what the chain made: each stage must make the same of it."""
    found = end_to_end.chained(WORLD, tmp_path)
    stored = {k: np.asarray(x) for k, x in found.items() if not k.startswith("decoded.")}
    meta = {key: value for key, value in WORLD.golden.meta.items() if key != "every"}
    meta["limit"] = dict.fromkeys(stored, 2e-5)
    golden = dataclasses.replace(WORLD.golden, meta=meta, expect=stored)
    world = dataclasses.replace(WORLD, golden=golden)
    rows = list(end_to_end.compare(world, "expect", end_to_end.compute(world, "expect")))
    assert end_to_end.runs_of(world) == ["expect", "chain"]
    assert [str(row) for row in rows if row.verdict != "ok"] == []
