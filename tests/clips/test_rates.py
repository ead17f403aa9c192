"""Frame rates as people write them."""

from fractions import Fraction

import pytest
from helpers.clips import moving_bars

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.clips.read import read_video
from justdubit_jax.clips.write import write_video
from justdubit_jax.errors import InputError


@pytest.mark.parametrize(
    "given, exact",
    [
        (25, Fraction(25)),
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(2997, 100), Fraction(2997, 100)),
        ("23.976", Fraction(24000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("2997/100", Fraction(2997, 100)),
        ("25", Fraction(25)),
        ("12.5", Fraction(25, 2)),
    ],
)
def test_exact_fps(tmp_path, given, exact):
    assert exact_fps(given) == exact
    write_video(tmp_path / "a.mp4", moving_bars(3, 32, 32), given)
    clip = read_video(tmp_path / "a.mp4")
    assert (clip.fps, len(clip.frames)) == (exact, 3)


@pytest.mark.parametrize(
    "given", [0, -25, 0.0, 1e-9, float("nan"), float("inf"), "", "fast", "25/0", "-24/1", 2**31]
)
def test_what_is_no_rate_is_refused(given):
    with pytest.raises(InputError, match=r"frame rate .*: expected a number above 0"):
        exact_fps(given)
