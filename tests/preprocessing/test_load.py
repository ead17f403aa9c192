"""A row's files in its bucket: one grid of frames for target, reference and mask; what is named."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import boxes
from helpers.clips import RATE, flash_and_click, moving_bars, mux
from helpers.layout import LTX2
from PIL import Image

from justdubit_jax.data.rows import Row
from justdubit_jax.errors import InputError
from justdubit_jax.preprocessing.buckets import parse_buckets
from justdubit_jax.preprocessing.load import Loaded, load_row

INTRA = {"g": "1", "bf": "0"}


def load(
    clip: Path, reference: Path | None = None, mask: Path | None = None, buckets="64x64x25", **more
) -> Loaded:
    row = Row("a", "words", clip, reference, mask)
    return load_row(row, parse_buckets(buckets, LTX2), 16_000, LTX2, **more)


def flash(frames: np.ndarray | None) -> int:
    assert frames is not None
    return int(frames.mean((1, 2, 3)).argmax())


def click_at(sound: np.ndarray | None) -> float:
    assert sound is not None
    return np.abs(sound).max(0).argmax() / 16_000


def kinds(loaded: Loaded) -> list[str]:
    return [finding.kind for finding in loaded.findings]


@pytest.mark.parametrize("fps", ["45000/1499", "2997/100", "30000/1001", "30"])
def test_rates_that_drift_by_less_than_half_a_frame_are_one(tmp_path, fps):
    target = flash_and_click(tmp_path / "phone.mp4", frames=40, flash=20, fps=Fraction(fps))
    other = flash_and_click(tmp_path / "thirty.mp4", frames=40, flash=20, fps=30)
    loaded = load(target, other, other)
    assert loaded.fps == Fraction(fps)
    assert flash(loaded.frames) == flash(loaded.reference_frames) == 20
    assert loaded.facts["reference"]["resampled"] == loaded.facts["mask"]["resampled"] == "no"
    assert kinds(loaded) == ["mask-flickers"]  # it flashes too


def test_other_rates_are_refused_or_resampled(tmp_path):
    target = flash_and_click(tmp_path / "a.mp4", frames=50, flash=20, fps=25)
    other = flash_and_click(tmp_path / "b.mp4", frames=50, flash=24, fps=30)
    with pytest.raises(InputError, match=r"b\.mp4: 30 frames per second, .*a\.mp4 has 25"):
        load(target, other)
    with pytest.raises(InputError, match=r"b\.mp4: 30 frames per second, .*a\.mp4 has 25"):
        load(target, None, other)
    loaded = load(target, other, other, frame_rate=Fraction(25))
    assert flash(loaded.frames) == flash(loaded.reference_frames) == 20
    loaded = load(other, target, frame_rate=Fraction(24))
    assert loaded.fps == 24
    assert abs(flash(loaded.frames) - 0.8 * 24) <= 0.5  # of a frame
    assert loaded.facts["media"]["resampled"] == loaded.facts["reference"]["resampled"] == "yes"
    assert click_at(loaded.reference_sound) == pytest.approx(0.8, abs=0.01)


def test_holes_are_filled_on_one_grid_or_refused(tmp_path):
    whole = flash_and_click(tmp_path / "whole.mp4", frames=50, flash=20)
    kept = {"keep": lambda index: not 5 <= index <= 8, "options": INTRA}
    holed = flash_and_click(tmp_path / "holed.mp4", frames=50, flash=20, **kept)
    for target, other in ((whole, holed), (holed, whole)):
        loaded = load(target, other)
        assert flash(loaded.frames) == flash(loaded.reference_frames) == 20
        assert kinds(loaded) == ["variable-rate"]
        assert click_at(loaded.sound) == click_at(loaded.reference_sound)
        assert click_at(loaded.sound) == pytest.approx(0.8, abs=0.01)
        with pytest.raises(InputError, match=r"holed\.mp4: frame 6 is at 0\.360 s"):
            load(target, other, strict_rate=True)
    assert kinds(load(whole, whole)) == []


def test_the_bucket_is_that_of_the_frames_that_can_be_decoded(tmp_path):
    options = {"g": "40", "bf": "0", "keyint_min": "40", "sc_threshold": "0"}
    cut = {"keep": lambda index: index >= 20, "options": options}
    path = flash_and_click(tmp_path / "a.mkv", frames=60, flash=50, **cut)
    loaded = load(path, buckets="64x64x9;64x64x17;64x64x25")
    assert len(loaded.frames) == 17 and flash(loaded.frames) == 10


def test_a_still_mask_stands_for_every_frame(tmp_path):
    target = flash_and_click(tmp_path / "a.mp4", flash=20)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    loaded = load(target, None, tmp_path / "m.png")
    assert loaded.mask is not None
    np.testing.assert_array_equal(loaded.mask, np.repeat([[[1.0, 0.0], [1.0, 0.0]]], 4, 0))
    assert load(target, None, tmp_path / "m.png", frame_rate=Fraction(24)).mask is not None
    for rate in (None, Fraction(25)):
        with pytest.raises(InputError, match=r"m\.png: a still picture, expected a clip"):
            load(target, tmp_path / "m.png", frame_rate=rate)


def test_odd_companions_are_named(tmp_path):
    target = flash_and_click(tmp_path / "a.mp4", size=(64, 96), flash=20)
    black = mux(tmp_path / "m.mp4", np.zeros((25, 64, 96, 3), np.uint8))
    wide = flash_and_click(tmp_path / "r.mp4", size=(64, 128), flash=20)
    loaded = load(target, wide, black, "96x64x25")
    assert kinds(loaded) == ["aspect", "mask-empty"]
    named = str(loaded.findings[0])
    assert named.startswith(f"{wide}: its aspect is 2.000, {target} has 1.500")
    nearly = flash_and_click(tmp_path / "n.mp4", size=(64, 98), flash=20)
    assert kinds(load(target, nearly, None, "96x64x25")) == ["aspect"]
    nearly = flash_and_click(tmp_path / "n.mp4", size=(96, 146), flash=20)
    assert kinds(load(target, nearly, None, "96x64x25")) == []
    assert [finding.text for finding in load(target).findings] == [
        "33 % of its width is cut off to fill the bucket"
    ]


def test_companions_are_turned_as_the_clip_is(tmp_path):
    target = flash_and_click(tmp_path / "a.mp4", size=(64, 96), flash=20)
    turned = flash_and_click(tmp_path / "r.mp4", size=(96, 64), flash=20)
    boxes.orient(turned, 0, 1, -1, 0)
    loaded = load(target, turned, turned, "96x64x25")
    assert kinds(loaded) == ["mask-flickers"] and loaded.facts["mask"]["turned"] == "270"
    assert loaded.reference_frames is not None
    assert loaded.reference_frames[3, 5].std() < 8  # its upright bar lies


def test_sound_that_is_odd_is_named_or_refused(tmp_path):
    target = flash_and_click(tmp_path / "a.mp4", flash=20)
    mute = flash_and_click(tmp_path / "mute.mp4", audio=None)
    with pytest.raises(InputError, match=r"mute\.mp4: no audio stream"):
        load(target, mute)
    with pytest.raises(InputError, match=r"mute\.mp4: no audio stream"):
        load(mute, target)
    silent = mux(tmp_path / "s.mov", moving_bars(25, 64, 64), np.zeros((2, RATE), np.float32))
    loaded = load(target, silent)
    assert [(f.path, f.kind) for f in loaded.findings] == [(silent, "sound-silent")]


def test_what_is_held_does_not_follow_the_size_of_a_clip(tmp_path):
    """Frames are scaled as they are decoded; a 720p frame in RGB has 2.8 MB."""
    large = {"size": (720, 1280), "options": {"preset": "ultrafast"}, "frames": 26, "flash": 20}
    path = flash_and_click(tmp_path / "a.mp4", **large)
    tracemalloc.start()
    try:
        load(path, path, path, "96x64x25")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
