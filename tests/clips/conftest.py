"""What the tests of reading and of writing clips share."""

from fractions import Fraction
from pathlib import Path

import pytest
from helpers.clips import RATE, click, moving_bars

from justdubit_jax.clips.write import write_video


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """25 frames and a click at 0.5 s, written by write_video."""
    path = tmp_path_factory.mktemp("media") / "new" / "clip.mp4"
    write_video(path, moving_bars(25), Fraction(30000, 1001), click(25 / 30, 0.5), RATE)
    return path
