"""Which prompt goes with which clip and image, and what of it is remembered; nothing is encoded."""

import os
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from justdubit_jax.dubbing.job import Encoded, Job
from justdubit_jax.latents import text_cache
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.sampling.guidance import Guidance
from justdubit_jax.training.settings import Settings
from justdubit_jax.validation import prepare
from justdubit_jax.validation.settings import Validation
from justdubit_jax.weights.checkpoint import SafetensorsCheckpoint


def context(words: str) -> Contexts:
    """Of a prompt: its length."""
    return np.full((1, 2), len(words), np.float32), np.full((1, 2), -len(words), np.float32)


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """Prompts prepared with numbers in the place of clips, latents and contexts."""
    asked, jobs = [], []

    def contexts(wanted, *_):
        asked.extend(wanted)
        return {prompt: context(prompt) for prompt in wanted}

    def clip_job(checkpoint, clip, image, **size):
        jobs.append((clip, image, size))
        frames = np.full((1, 1, 1, 3), len(jobs), np.uint8)
        return Job(1, 32, 32, Fraction(25), frames, None, None), []

    def encode_jobs(checkpoint, jobs):
        return [Encoded(job.reference.astype(np.float32), None, None) for job in jobs]

    for name, stub in {"cached_contexts": contexts, "clip_job": clip_job}.items():
        monkeypatch.setattr(prepare, name, stub)
    monkeypatch.setattr(prepare, "encode_jobs", encode_jobs)
    given = {"prompts": ("one", "three"), "negative_prompt": "a bad one", "interval": 1}
    given |= {"reference_videos": (Path("1.mp4"), Path("2.mp4")), "seed": 42}
    given |= {"images": (Path("1.png"), Path("2.png")), "text_encoder_path": tmp_path}
    given |= {"height": 64, "width": 96, "frames": 25, "frame_rate": Fraction(30)}

    def run(cfg: float):
        v = Mock(spec=Validation, guidance=(Guidance(cfg=cfg), Guidance(cfg=1)), **given)
        settings = Mock(spec=Settings, output_dir=tmp_path, model_path=tmp_path)
        made = prepare.prepare_validation(settings, v, Mock(spec=SafetensorsCheckpoint))
        return made, asked, jobs

    return run


def test_each_prompt_has_its_own_clip_image_and_context(prepared):
    made, asked, jobs = prepared(3.0)
    size = {"height": 64, "width": 96, "max_frames": 25, "frame_rate": Fraction(30)}
    assert jobs == [(Path(f"{n}.mp4"), Path(f"{n}.png"), size) for n in (1, 2)]
    assert [sample.text for sample in made] == ["one", "three"]
    for number, sample in enumerate(made, 1):
        request = sample.request
        assert request.job.reference.item(0) == request.encoded.reference.item(0) == number
        np.testing.assert_array_equal(request.prompt, context(sample.text))
        np.testing.assert_array_equal(request.negative, context("a bad one"))
        assert request.seed == 42
    assert asked == ["one", "three", "a bad one"]


def test_without_guidance_nothing_is_encoded_for_the_negative_prompt(prepared):
    made, asked, _ = prepared(1.0)
    assert asked == ["one", "three"]
    assert all(sample.request.negative is None for sample in made)


@pytest.mark.parametrize("changed", ["model", "gemma"])
def test_another_checkpoint_or_encoder_encodes_again(monkeypatch, tmp_path, changed):
    files = {"model": tmp_path / "model.safetensors", "gemma": tmp_path / "gemma" / "model"}
    files["gemma"].parent.mkdir()
    for file in files.values():
        file.write_text("first")
    encoded = []

    def text_encoder(checkpoint, gemma: Path, dtype):
        def encode(prompts):
            encoded.extend(prompts)
            return [context(prompts[0])]

        return encode

    monkeypatch.setattr(text_cache, "text_encoder", text_encoder)

    def ask() -> None:
        where = files["model"], files["gemma"].parent, tmp_path / "cache"
        text_cache.cached_contexts(["a"], Mock(spec=SafetensorsCheckpoint), *where)

    ask()
    ask()
    assert encoded == ["a"]
    os.utime(files[changed], ns=(1, 1))
    ask()
    assert encoded == ["a", "a"]
