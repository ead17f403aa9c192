"""Frame rates as exact fractions."""

from fractions import Fraction

from justdubit_jax.errors import InputError

_MAX_INT = 2**31 - 1  # of either part of FFmpeg's fractions


def exact_fps(fps: Fraction | float | int | str) -> Fraction:
    """A frame rate as a fraction: 29.97 is 30000/1001, 12.5 is 25/2; as text "24000/1001" too.

    Raises InputError for what is not a rate.
    """
    try:
        exact = Fraction(fps)
    except (ValueError, OverflowError, ZeroDivisionError):  # not a number, infinite, over zero
        exact = Fraction(0)
    if isinstance(fps, float) or (isinstance(fps, str) and "/" not in fps):
        ntsc = Fraction(round(exact * 1001 / 1000) * 1000, 1001)
        # 23.98 and 23.976 both mean 24000/1001; 24 is 0.024 away from it.
        near = exact.denominator != 1 and abs(exact - ntsc) < Fraction(5, 1000)
        exact = ntsc if near else exact.limit_denominator(1001)
    if exact <= 0 or max(exact.as_integer_ratio()) > _MAX_INT:
        raise InputError(
            f"frame rate {fps}: expected a number above 0, or a fraction such as 24000/1001"
        )
    return exact
