"""What only a whole run shows: its file, its samples and its numbers are one and the same model."""

import json

import numpy as np
import pytest
from helpers import toy
from PIL import Image

from justdubit_jax import dub, train
from justdubit_jax.clips.read import read_audio, read_video
from justdubit_jax.data.samples import group_by_shape
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import load_base, prepare_training
from justdubit_jax.validation.fixed_loss import FixedLoss
from justdubit_jax.weights.checkpoint import open_checkpoint

# A whole run by itself, minutes of compiling; what it is wired of is tested part by part elsewhere.
pytestmark = pytest.mark.deep

PROMPT, NEGATIVE = "A face with a low voice says: hello.", "still, silent"
# As the keys of configs/dub.py, and as dub's flags.
SAMPLING = {
    ("guidance_scale", "guidance-scale"): 2.5,
    ("audio_cfg_scale", "audio-cfg-guidance-scale"): 4.0,
    ("guidance_rescale", "video-rescale-scale"): 0.6,
    ("audio_guidance_rescale", "audio-rescale-scale"): 0.2,
    ("inference_steps", "steps"): 2,
    ("seed", "seed"): 7,
}


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """Two steps, far enough to be seen, with a sample after the second and two samples held out."""
    clip = demo / "dataset/clips/001_reference.mp4"
    folder = tmp_path_factory.mktemp("conscience")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    chosen = toy.config(
        demo,
        folder / "run",
        *("--config.optimization.steps=2", "--config.optimization.learning_rate=0.1"),
        *("--config.checkpoints.precision=float32", "--config.lora.alpha=6"),
        *("--config.validation.interval=2", "--config.validation.skip_initial_validation=True"),
        f"--config.model.text_encoder_path={demo / 'assets/gemma'}",
        f"--config.validation.prompts={(PROMPT,)}",
        f"--config.validation.negative_prompt={NEGATIVE}",
        f"--config.validation.reference_videos={(str(clip),)}",
        f"--config.validation.images={(str(folder / 'picture.png'),)}",
        "--config.validation.holdout=2",
        *(f"--config.validation.{key}={value}" for (key, _), value in SAMPLING.items()),
    )
    train.main(chosen)
    return chosen


def test_dub_makes_the_samples_of_the_validation(demo, run, tmp_path):
    folder = RunFolder(settings.read(run).output_dir)
    out = tmp_path / "dubbed.mp4"
    flags = {
        "video": demo / "dataset/clips/001_reference.mp4",
        "image": folder.path.with_name("picture.png"),
        "prompt": PROMPT,
        "negative-prompt": NEGATIVE,
        "lora": folder.lora(2),
        "model-path": demo / "assets/ltx-2-tiny.safetensors",
        "text-encoder-path": demo / "assets/gemma",
        "out": out,
    } | {flag: value for (_, flag), value in SAMPLING.items()}
    dub.main(
        dub.parse_arguments([str(x) for name, value in flags.items() for x in (f"--{name}", value)])
    )
    sample = folder.sample(2, 1)
    np.testing.assert_array_equal(read_video(out).frames, read_video(sample).frames)
    np.testing.assert_array_equal(read_audio(out, 24000, 1), read_audio(sample, 24000, 1))


def test_the_logged_loss_is_that_of_the_file(run):
    chosen = settings.read(run)
    folder, source = RunFolder(chosen.output_dir), open_checkpoint(chosen.model_path)
    logged = json.loads(folder.validation.read_text().splitlines()[-1])
    mesh = train.sharding.make_mesh(*chosen.mesh)
    training = prepare_training(chosen, source.config, mesh)
    adapters = lora_files.read_file(folder.lora(2), training.abstract.adapters)
    fixed = FixedLoss(training.objective, training.graphdef, training.layout, mesh)
    _, held_out = train.read_data(chosen, 2)
    weights = Weights(adapters, load_base(training, source))
    assert logged == {"step": 2, **fixed.mean(weights, group_by_shape(held_out))}
