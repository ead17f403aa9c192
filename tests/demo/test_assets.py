"""The demo's data set and its tiny Gemma are what their real counterparts look like."""

import json

import numpy as np
import pytest
from flax import nnx
from helpers.layout import LTX2

from justdubit_jax.clips.read import probe, read_audio, read_video
from justdubit_jax.demo.assets import _MOUTH, make_dataset, make_gemma
from justdubit_jax.models.gemma import Gemma, GemmaConfig
from justdubit_jax.preprocessing.buckets import pool_mask
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_safetensors
from justdubit_jax.weights.load import compare


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    listing = make_dataset(folder, count=2, seed=3, size=(64, 64), frames=25)
    return folder, json.loads(listing.read_text())


def load(folder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames as float in 0..1, and sound at 16 kHz."""
    clip = read_video(folder / name)
    assert clip.fps == 25 and clip.frames.shape == (25, 64, 64, 3)
    return clip.frames / np.float32(255), read_audio(folder / name, 16_000, clip.seconds)


def test_dataset_is_paired_clips_with_sound(dataset):
    folder, entries = dataset
    assert [set(e) for e in entries] == [
        {"caption", "media_path", "reference_path", "mask_path"}
    ] * 2
    assert entries[0]["media_path"].startswith("clips/")
    assert entries[0]["caption"] != entries[1]["caption"]
    for entry in entries:
        _, said = load(folder, entry["media_path"])
        _, other = load(folder, entry["reference_path"])
        assert 0.4 < np.abs(said).max() < 0.9 and 0.4 < np.abs(other).max() < 0.9
        assert np.abs(np.corrcoef(said[0], other[0])[0, 1]) < 0.5
        assert not probe(folder / entry["mask_path"]).has_audio


def test_mouths_follow_the_sound(dataset):
    folder, entries = dataset
    for entry in entries:
        for role in ("media_path", "reference_path"):
            frames, sound = load(folder, entry[role])
            loudness = np.sqrt((sound[0].reshape(25, -1) ** 2).mean(1))
            inside = np.array(_MOUTH, np.float32) / 255
            opening = (np.abs(frames - inside).sum(-1) < 0.25).sum((1, 2))
            assert np.corrcoef(opening, loudness)[0, 1] > 0.6


def test_masks_follow_the_faces(dataset):
    folder, entries = dataset
    for entry in entries:
        frames, _ = load(folder, entry["media_path"])
        other, _ = load(folder, entry["reference_path"])
        mask = read_video(folder / entry["mask_path"]).frames.mean(-1) / 255
        assert len(mask) == 25 and 0.1 < mask.mean() < 0.5
        changed = np.abs(frames - other).sum(-1) > 0.3  # the clips differ in the mouth only
        assert changed.any() and (mask[changed] > 0.5).mean() > 0.98
        assert pool_mask(mask.astype(np.float32), LTX2).shape == (4, 2, 2)


def test_dataset_follows_from_its_seed(dataset, tmp_path):
    folder, entries = dataset
    make_dataset(tmp_path, count=1, seed=3, size=(64, 64), frames=25)
    again = json.loads((tmp_path / "dataset.json").read_text())
    assert again == entries[:1]
    for mine, yours in zip(
        load(tmp_path, again[0]["media_path"]), load(folder, entries[0]["media_path"]), strict=True
    ):
        np.testing.assert_array_equal(mine, yours)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma") / "tiny"
    make_gemma(folder, seed=1)
    return folder


def test_gemma_s_weights_are_the_model_s(gemma):
    config = GemmaConfig.from_folder_config(json.loads((gemma / "config.json").read_text()))
    assert sum(config.sliding) == len(config.sliding) - 1  # one global layer
    checkpoint = open_safetensors([gemma / "model.safetensors"])
    assert not compare(keys.GEMMA, nnx.eval_shape(lambda: Gemma(config)), checkpoint.shapes)
    with checkpoint.reader() as read:
        embedding = read("language_model.model.embed_tokens.weight", (slice(None), slice(None)))
    assert embedding.dtype == "bfloat16" and 0.1 < embedding.astype(np.float32).std() < 0.15


def test_gemma_s_tokenizer_loads_offline_and_pads_left(gemma):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma, local_files_only=True)
    text = "She says: ça va — 你好"
    got = tokenizer(text, padding="max_length", max_length=1024, truncation=True)
    ids, mask = np.array(got["input_ids"]), np.array(got["attention_mask"])
    count = 1 + len(text.encode())
    assert ids.shape == mask.shape == (1024,)
    assert not mask[:-count].any() and mask[-count:].all()
    assert (ids[:-count] == tokenizer.pad_token_id).all()
    assert ids[-count] == tokenizer.bos_token_id and ids.max() < 260
    assert tokenizer.decode(ids[-count:], skip_special_tokens=True) == text
    long = tokenizer("a" * 2000, padding="max_length", max_length=1024, truncation=True)
    assert len(long["input_ids"]) == 1024
