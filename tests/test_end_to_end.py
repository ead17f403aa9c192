"""From a clip pair's files to a dubbed clip, by the commands, against the reference.

What passes from stage to stage is compared, so a crossed wire shows: a part left out or zeroed, two
of a kind swapped, a setting that goes nowhere.
"""

import jax
import numpy as np
import pytest
from helpers.commands import REPO
from parity import end_to_end
from parity.commands import NOT_DECODED

WORLD = end_to_end.read_world(REPO / "tests/golden_e2e")
PARTS = ("frames", "wave", "latents", "mask", "text", "train_first_frame", "state", "sample")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything that preprocess, train and dub make of the files."""
    return end_to_end.chained(WORLD, tmp_path_factory.mktemp("end_to_end"))


def wrong(got: dict[str, np.ndarray], part: str) -> list[str]:
    rows = list(end_to_end.compare(WORLD, "chain", end_to_end.as_expected(WORLD, got)))
    of_part = [row for row in rows if row.tensor.partition(".")[0] == part]
    assert of_part
    return [str(row) for row in of_part if row.verdict != "ok"]


@pytest.mark.parametrize("part", PARTS)
def test_the_commands_make_what_the_reference_makes(made, part):
    assert not wrong(made, part)


def test_nothing_of_the_set_is_left_out():
    assert {name.partition(".")[0] for name in WORLD.golden.expect} == set(PARTS)


def test_dub_writes_what_was_decoded(made):
    (frames,), sound, rate = NOT_DECODED
    np.testing.assert_array_equal(made["decoded.frames"], frames)
    np.testing.assert_array_equal(made["decoded.waveform"], sound)
    np.testing.assert_array_equal(made["decoded.rates"], [float(WORLD.fps), rate])


def test_dub_draws_its_noise_by_the_seed(made):
    """The same seed is the same clip, in every version."""
    seed_keys = jax.random.split(jax.random.key(WORLD.golden.meta["seed"]))
    for key, name in zip(seed_keys, ("video", "audio"), strict=True):
        noise = made[f"own_noise.{name}"]
        np.testing.assert_array_equal(noise, jax.random.normal(key, noise.shape))
