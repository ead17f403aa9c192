"""Sound of a clip: how channels are mixed, and what is said of sound that is odd."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.clips import RATE, click, flash_and_click, moving_bars, mux

from justdubit_jax.clips.sound import read_audio, read_sound
from justdubit_jax.errors import InputError


def tone(seconds: float, channels: int = 2, level: float = 0.9, hertz: float = 220) -> np.ndarray:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[None], channels, 0).astype(np.float32)


def with_sound(path: Path, sound: np.ndarray, audio: str = "pcm_f32le", layout="stereo") -> Path:
    return mux(path, moving_bars(25, 32, 32), sound, audio=audio, layout=layout)


def kinds(path: Path, seconds: float = 1.0) -> list[str]:
    return [finding.kind for finding in read_sound(path, 16_000, seconds).findings]


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le", "ac3"])
@pytest.mark.parametrize("layout, channels", [("5.1", 6), ("quad", 4), ("2.1", 3)])
def test_many_channels_stay_below_full_scale(tmp_path, audio, layout, channels):
    if (audio, layout) == ("ac3", "2.1"):
        return
    path = with_sound(tmp_path / "a.mkv", tone(1, channels), audio, layout)
    sound = read_audio(path, 16_000, 1)
    assert 0.9 < np.abs(sound).max() <= 1
    # Scaled as a whole, not cut: a pure tone stays one.
    spectrum = np.abs(np.fft.rfft(sound[0, 4000:12000] * np.hanning(8000)))
    assert spectrum[105:116].max() > 300 * spectrum[150:].max()


def test_a_voice_in_the_middle_is_as_loud_as_one_in_stereo(tmp_path):
    six = np.zeros((6, RATE), np.float32)
    six[2] = tone(1)[0]
    middle = read_audio(with_sound(tmp_path / "a.mov", six, "pcm_s16le", "5.1"), 16_000, 1)
    stereo = tone(1) / np.sqrt(2)  # of the same power from two speakers
    assert np.abs(middle).max() == pytest.approx(np.abs(stereo).max(), rel=0.01)
    np.testing.assert_array_equal(middle[0], middle[1])


def test_what_decoders_add_is_cut(tmp_path):
    sound = with_sound(tmp_path / "a.mov", tone(1, level=1.2))
    assert np.abs(read_audio(sound, 16_000, 1)).max() == 1


def test_ordinary_sound_is_not_remarked_on(tmp_path):
    for level in (0.9, 0.01):
        for audio in ("aac", "pcm_s16le"):
            path = with_sound(tmp_path / "a.mkv", tone(1, level=level), audio)
            assert kinds(path) == []
    assert kinds(flash_and_click(tmp_path / "b.mp4"), 2.0) == []


def test_odd_sound_is_named(tmp_path):
    silent = with_sound(tmp_path / "silent.mov", 1e-5 * tone(1))
    assert kinds(silent) == ["sound-silent"]
    for audio in ("pcm_s16le", "aac"):
        voice = tone(1, hertz=150) * np.sin(np.arange(RATE) / 3000).astype(np.float32)
        loud = np.clip(2 * voice, -1, 1)
        assert kinds(with_sound(tmp_path / "loud.mkv", loud, audio)) == ["sound-clipped"]
        assert kinds(with_sound(tmp_path / "well.mkv", voice, audio)) == []
    short = with_sound(tmp_path / "short.mov", tone(0.6))
    sound = read_sound(short, 16_000, Fraction(1))
    (finding,) = sound.findings
    assert str(finding) == f"{short}: its sound ends at 0.60 s of 1.00 s, then silence"
    assert (sound.samples[:, 9700:] == 0).all()
    hole = {"keep_sound": lambda time: not 0.5 < time < 0.8}
    assert kinds(flash_and_click(tmp_path / "gap.mkv", **hole), 2.0) == ["sound-gap"]
    late = mux(tmp_path / "late.mov", moving_bars(25, 32, 32), tone(0.7), starts=(0, 0.3))
    assert kinds(late) == ["sound-gap"]


def test_sound_without_a_decoder_is_refused(tmp_path):
    path = with_sound(tmp_path / "a.mov", tone(1), "pcm_s16le")
    data = path.read_bytes()
    assert data.count(b"sowt") == 1
    path.write_bytes(data.replace(b"sowt", b"apac"))
    with pytest.raises(InputError, match=r"a\.mov: its sound is in a codec that has no deco"):
        read_audio(path, 16_000, 1)


def test_how_it_was_taken_is_said(tmp_path):
    path = with_sound(tmp_path / "a.mov", click(1, 0.5, channels=1), "pcm_s16le", "mono")
    assert read_sound(path, 16_000, 1).metadata() == {
        "sound_track": "audio 1 of 1, pcm_s16le",
        "sound_layout": "mono",
    }
