"""Scaling and cropping, as torch does it."""

import numpy as np
import pytest

from justdubit_jax.clips.scale import resize_and_crop


def pattern(height: int, width: int) -> np.ndarray:
    i, j = np.mgrid[:height, :width]
    gray = (37 * i * i + 91 * j * (i + 1) + 13 * j * j) % 256
    return np.repeat(gray[None, :, :, None], 3, axis=3).astype(np.uint8)


# torch 2.13's bicubic interpolate of pattern(6, 9) in float32, antialias=True, cropped, clamped and
# rounded: down, nothing cropped; up, cropped at the sides; down, cropped above and below.
TORCH = {
    (4, 6): [
        [54, 202, 149, 104, 194, 90],
        [144, 209, 140, 155, 146, 101],
        [104, 87, 53, 153, 173, 192],
        [138, 57, 110, 153, 73, 149],
    ],
    (8, 4): [
        [145, 79, 17, 19],
        [181, 159, 161, 170],
        [153, 182, 205, 181],
        [58, 130, 130, 56],
        [7, 138, 208, 163],
        [7, 63, 117, 151],
        [55, 101, 123, 127],
        [109, 223, 229, 129],
    ],
    (2, 8): [
        [90, 223, 194, 168, 197, 125, 135, 46],
        [127, 197, 113, 94, 146, 162, 178, 170],
    ],
}


@pytest.mark.parametrize("size", TORCH)
def test_resize_and_crop_is_torch_s(size):
    got = resize_and_crop(pattern(6, 9), *size)
    assert got.shape == (1, *size, 3)
    # Both sum in float32 in different orders, so a half may round either way; none does here.
    np.testing.assert_array_equal(got[0, :, :, 1], TORCH[size])


def test_resize_and_crop_keeps_what_fits():
    frames = pattern(64, 96)
    np.testing.assert_array_equal(resize_and_crop(frames, 64, 96), frames)
    np.testing.assert_array_equal(resize_and_crop(frames, 64, 32), frames[:, :, 32:64])
    np.testing.assert_array_equal(resize_and_crop(frames, 31, 96), frames[:, 16:47])


def test_resize_and_crop_treats_frames_and_channels_alike():
    frames = np.stack([pattern(33, 51)[0], 255 - pattern(33, 51)[0]])
    frames[..., 2] = 200
    got = resize_and_crop(frames, 32, 64)
    np.testing.assert_array_equal(got[1:], resize_and_crop(frames[1:], 32, 64))
    assert (got[..., 2] == 200).all()
