"""Buckets and mask pooling."""

import numpy as np
import pytest
from helpers.layout import LTX2

from justdubit_jax.errors import InputError
from justdubit_jax.preprocessing.buckets import Bucket, choose_bucket, parse_buckets, pool_mask


def test_parse_buckets():
    assert parse_buckets("640x352x121", LTX2) == [Bucket(frames=121, height=352, width=640)]
    mixed = parse_buckets("64x96;32x64x9", LTX2)
    assert mixed[:2] == [(1, 96, 64), (9, 96, 64)]
    assert mixed[-2:] == [(513, 96, 64), (9, 64, 32)]
    assert len(mixed) == 66
    assert str(mixed[-1]) == "32x64x9"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("640x350x121", "height 350 is not a multiple of 32"),
        ("0x352x121", "width 0 is not a multiple of 32"),
        ("640x352x120", "120 frames are not a multiple of 8 plus 1"),
        ("640x352x0", "0 frames are not a multiple of 8 plus 1"),
        ("640x352;640", "'640' is not WIDTHxHEIGHT"),
        ("640x352x121;", "'' is not WIDTHxHEIGHT"),
        ("640x352x121x3", "is not WIDTHxHEIGHT"),
        ("-640x352x121", "is not WIDTHxHEIGHT"),
        ("axbxc", "'axbxc' is not WIDTHxHEIGHT"),
    ],
)
def test_parse_buckets_names_the_bad_piece(text, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_buckets(text, LTX2)


def test_choose_bucket_goes_by_aspect_then_frames_then_area():
    choices = parse_buckets("640x352x25;352x640x25;320x192x121;640x384x121;960x576x17", LTX2)
    assert str(choose_bucket(200, 1080, 1920, choices)) == "640x352x25"
    assert str(choose_bucket(30, 1920, 1080, choices)) == "352x640x25"
    # 320x192, 640x384 and 960x576 have one aspect: most frames first, then the larger.
    assert str(choose_bucket(200, 600, 1000, choices)) == "640x384x121"
    assert str(choose_bucket(120, 600, 1000, choices)) == "960x576x17"
    assert str(choose_bucket(17, 1080, 1920, choices)) == "960x576x17"


def test_choose_bucket_of_a_short_clip():
    with pytest.raises(InputError, match="16 frames, but the shortest bucket needs 17"):
        choose_bucket(16, 64, 64, parse_buckets("64x64x25;64x64x17", LTX2))


def test_pool_mask():
    mask = np.zeros((17, 64, 96), np.float32)
    mask[0, 0, 0] = 1  # the first frame is a latent frame of its own
    mask[3, 32:, 64:] = 1  # one frame of the second latent frame's eight
    mask[4, 32:, 64:80] = 1
    mask[16, :16, 32:64] = 0.5  # the last frame of the third
    want = np.zeros((3, 2, 3), np.float32)
    want[0, 0, 0] = 1 / 1024
    want[1, 1, 2] = 1
    want[2, 0, 1] = 0.25
    np.testing.assert_array_equal(pool_mask(mask, LTX2), want)
    np.testing.assert_array_equal(pool_mask(mask[:1], LTX2), want[:1])
