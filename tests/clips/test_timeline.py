"""Sound and picture on one time line, and rates by the frames themselves, from real files."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import boxes
from helpers.clips import apart, flash_and_click
from helpers.layout import LTX2

from justdubit_jax.clips.fit import fit_clip
from justdubit_jax.clips.frames import _stamps as stamps_of_packets
from justdubit_jax.clips.read import Shape, iterate_pictures, read_audio, read_clip, read_video
from justdubit_jax.clips.timeline import own_rate, same_rate
from justdubit_jax.errors import InputError

NTSC = Fraction(1000, 1001)
TOGETHER = 0.01  # s; the codecs' own edges take up to 3 ms
INTRA = {"g": "1", "bf": "0"}


def offset(path: Path, frames: int | None = None) -> float:
    clip = read_video(path, frames)
    return apart(clip, read_audio(path, 16_000, clip.seconds))


# Container, codecs, pixels, rate: each container, codec, depth and rate once.
KINDS = [
    ("mp4", "libx264", "aac", "yuv420p", Fraction(25)),
    ("mov", "prores_ks", "pcm_s16le", "yuv422p10le", 24 * NTSC),
    ("mkv", "libx264", "flac", "yuv420p10le", 30 * NTSC),
    ("webm", "libvpx-vp9", "libopus", "yuv420p", Fraction(30)),
    ("mp4", "libsvtav1", "aac", "yuv420p10le", Fraction(50)),
    ("ts", "libx265", "ac3", "yuv420p", 60 * NTSC),
    ("ts", "libx264", "aac", "yuv420p", Fraction(25)),
    ("avi", "libx264", "pcm_s16le", "yuv420p", Fraction(24)),
    ("avi", "mpeg4", "pcm_s16le", "yuv420p", Fraction(60)),
]
QUICK = {
    "libx264": {"bf": "2"},
    "mpeg4": {"bf": "2"},
    "libsvtav1": {"preset": "12"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=error"},
}


@pytest.mark.parametrize("suffix, video, audio, pixels, fps", KINDS)
def test_flash_and_click_are_together(tmp_path, suffix, video, audio, pixels, fps):
    kind = {"video": video, "audio": audio, "pixels": pixels, "fps": fps}
    path = flash_and_click(tmp_path / f"a.{suffix}", **kind, options=QUICK.get(video))
    clip = read_video(path)
    assert (clip.fps, len(clip.frames), clip.facts.variable) == (fps, 50, False)
    assert abs(apart(clip, read_audio(path, 16_000, clip.seconds))) < TOGETHER


OPEN = "open-gop=1:keyint=25:min-keyint=25:scenecut=0"
CUT = [
    ("a.ts", "libx264", "aac", {"bf": "0", "g": "25", "keyint_min": "25", "sc_threshold": "0"}),
    ("a.mkv", "libx264", "aac", {"bf": "2", "x264-params": OPEN}),
    ("b.ts", "libx265", "aac", {"x265-params": f"log-level=error:{OPEN}"}),
    ("c.ts", "mpeg2video", "mp2", {"g": "15", "bf": "2"}),
    ("a.webm", "libvpx-vp9", "libopus", {"g": "25"}),
    ("b.mkv", "libsvtav1", "aac", {"g": "25", "preset": "12"}),
    ("a.avi", "mpeg4", "pcm_s16le", {"g": "25", "bf": "0"}),
]


@pytest.mark.parametrize("name, video, audio, options", CUT)
def test_a_stream_cut_between_keyframes(tmp_path, name, video, audio, options):
    """Its first frames cannot be decoded; the sound starts where the picture does."""
    kind = {"video": video, "audio": audio, "options": options}
    kept = {"keep": lambda index: index >= 12, "frames": 70, "flash": 50}
    path = flash_and_click(tmp_path / name, **kind, **kept)
    assert abs(offset(path)) < TOGETHER
    assert abs(offset(path, 41)) < TOGETHER
    assert len(read_video(path).frames) < 60


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("begin", [0.41, 0.39, 0.4, 0.401])
def test_a_cut_inside_a_frame(tmp_path, name, begin):
    path = flash_and_click(tmp_path / name, options={"g": "25", "bf": "2"})
    assert len(read_video(path).frames) == 50
    boxes.cut(path, begin, 1.61)
    # Frames begin at multiples of 40 ms; those that begin inside the edit are taken.
    assert len(read_video(path).frames) == 41 - (10 if begin in (0.39, 0.4) else 11)
    assert abs(offset(path)) < 0.005


def test_a_track_that_begins_later(tmp_path):
    for kind, late in ((b"soun", 0.2), (b"vide", -0.2)):
        path = flash_and_click(tmp_path / "a.mp4")
        boxes.delay(path, kind, 0.2)
        assert offset(path) == pytest.approx(late, abs=TOGETHER)


@pytest.mark.parametrize("gap", [0.03, 0.3])
def test_a_gap_in_the_sound(tmp_path, gap):
    hole = {"keep_sound": lambda time: not 0.5 < time < 0.5 + gap}
    for name in ("a.mkv", "a.ts", "a.mp4"):
        assert abs(offset(flash_and_click(tmp_path / name, **hole))) < TOGETHER, name


@pytest.mark.parametrize(
    "name, video", [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_a_hole_in_the_pictures(tmp_path, name, video):
    """25 fps, but frames 1 to 4 are missing: the others keep their times."""
    holed = {"keep": lambda index: not 1 <= index <= 4, "options": INTRA, "video": video}
    audio = "pcm_s16le" if name == "a.avi" else "aac"
    path = flash_and_click(tmp_path / name, frames=60, flash=30, audio=audio, **holed)
    clip = read_video(path, 41)
    assert (clip.fps, len(clip.frames), clip.facts.variable) == (25, 41, True)
    assert abs(offset(path, 41)) < TOGETHER
    assert len(read_video(path).frames) == 60
    with pytest.raises(
        InputError, match=r"frame 2 is at 0\.200 s, at 25 fps its place is 0\.040 s"
    ):
        read_clip(path, lambda *_: Shape(41, 64, 64), 41, strict=True)


def test_packets_of_single_fields_are_no_frames(tmp_path, monkeypatch):
    """As transport streams have them: the stamps of the frames count."""
    path = flash_and_click(tmp_path / "a.mp4")
    whole, seen = read_video(path, 41), stamps_of_packets

    def of_fields(*arguments):
        times, has_keyframes = seen(*arguments)
        return sorted([*times, *(time + Fraction(1, 50) for time in times)]), has_keyframes

    monkeypatch.setattr("justdubit_jax.clips.frames._stamps", of_fields)
    clip = read_video(path, 41)
    assert (clip.fps, clip.facts.variable) == (25, False)
    np.testing.assert_array_equal(clip.frames, whole.frames)


def test_a_hole_behind_what_is_used_is_none(tmp_path):
    holed = {"keep": lambda index: not 40 <= index <= 44, "options": INTRA}
    path = flash_and_click(tmp_path / "a.mp4", frames=60, flash=30, **holed)
    assert not read_video(path, 33).facts.variable
    assert read_video(path, 49).facts.variable


@pytest.mark.parametrize(
    "name, stamps",
    [
        ("clock.mkv", {"clock": 1000, "stamp": lambda k: 1000 * k // 30}),
        ("clock.flv", {"clock": 1000, "stamp": lambda k: 1000 * k // 30}),
        ("sixty.mp4", {"clock": 60, "stamp": lambda k: 2 * k}),
        ("phone.mp4", {"clock": 600, "stamp": lambda k: 20 * k}),
        ("longer.mp4", {"clock": 30, "stamp": lambda k: k + 4 * (k == 49)}),
    ],
)
def test_rates_are_those_of_the_stamps(tmp_path, name, stamps):
    """The header has the clock, twice the rate, or a mean that the last frame moves."""
    path = flash_and_click(tmp_path / name, fps=30, **stamps)
    clip = read_video(path, 41)
    assert clip.fps == 30 and not clip.facts.variable
    assert abs(offset(path, 41)) < TOGETHER


def test_a_phones_rate_is_its_own(tmp_path):
    path = flash_and_click(tmp_path / "a.mp4", fps=Fraction(45000, 1499))
    assert read_video(path).fps == Fraction(45000, 1499)
    assert same_rate(Fraction(45000, 1499), Fraction(30), 121)
    assert same_rate(Fraction(2997, 100), 30 * NTSC, 513)
    assert same_rate(Fraction(30), 30 * NTSC, 121)
    assert not same_rate(Fraction(30), 30 * NTSC, 513)
    assert not same_rate(Fraction(25), Fraction(24), 25)


def times(*steps: float, tick: Fraction = Fraction(1, 1000)) -> list[Fraction]:
    return [round(float(t) / tick) * tick for t in np.cumsum([0.5, *steps])]


TICK = Fraction(1, 1000)


@pytest.mark.parametrize(
    "steps, declared, rate",
    [
        ([1 / 30] * 60, [1000], 30),
        ([1 / 30] * 60, [60, 30], 30),
        ([1001 / 30000] * 300, [], 30 * NTSC),
        ([1001 / 24000] * 60, [24 * NTSC], 24 * NTSC),
        ([0.04] * 30 + [0.2] + [0.04] * 30, [24], 25),
        ([0.04] * 60 + [1.0], [], 25),
        ([2 / 59.94, 3 / 59.94] * 30, [], 24 * NTSC),  # 3:2 pulldown: the mean
        ([0.0333, 0.035, 0.0317] * 20, [], 30),
        ([], [25], 25),
        ([], [], None),
    ],
)
def test_own_rate(steps, declared, rate):
    got = own_rate(times(*steps), TICK, [Fraction(r) for r in declared])
    assert got == rate if rate is None else abs(got / rate - 1) < 4e-4
    assert got != rate or rate in (None, *declared) or got.denominator in (1, 1001)


@pytest.mark.parametrize("fps", [Fraction(30), 24 * NTSC, Fraction(60), Fraction(45000, 1499)])
def test_a_given_rate_resamples_everything(tmp_path, fps):
    path = flash_and_click(tmp_path / "a.mp4", fps=fps, frames=66, flash=20)
    clip = read_clip(path, lambda *_: Shape(17, 64, 64), 17, Fraction(25))
    assert (clip.fps, len(clip.frames)) == (25, 17)
    want = [abs(Fraction(k) / 25 * fps - np.arange(66)).argmin() for k in range(17)]
    stored = [picture.pixels for picture in iterate_pictures(path)]
    np.testing.assert_array_equal(clip.frames, [stored[k] for k in want])
    assert clip.facts.resampled and not clip.facts.variable
    assert fit_clip(path, LTX2, 25, max_frames=17).notes[0].startswith("resampled")


def test_joined_recordings_are_refused(tmp_path):
    one = flash_and_click(tmp_path / "one.ts", options=INTRA, audio=None)
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    with pytest.raises(InputError, match=r"two\.ts: (damaged|its time stamps)"):
        read_video(tmp_path / "two.ts")
    assert len(read_video(tmp_path / "two.ts", 41).frames) == 41
