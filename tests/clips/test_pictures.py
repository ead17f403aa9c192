import numpy as np
from helpers.made_up import clip
from PIL import Image

from justdubit_jax.clips.pictures import contact_sheet_png, frame_row, side_by_side


def test_contact_sheet(tmp_path):
    black, white = np.zeros((17, 40, 80, 3), np.uint8), np.full((3, 80, 40, 3), 200, np.uint8)
    path = tmp_path / "sheet.png"
    contact_sheet_png(path, [("reference", black), ("dubbed", white)], columns=4)
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (2 * (24 + 160 + 4), 4 + 4 * 320 + 3 * 4 + 4, 3)
    assert (sheet[24:184, 4:324] == 0).all() and (sheet[212:372, 4:84] == 200).all()
    assert (sheet[:24] < 128).any()  # the label


def test_frames_of_a_row_are_evenly_spaced():
    frames = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 160, 10, 3))
    row = frame_row(frames, 5)
    assert [row[0, 14 * i, 0] for i in range(5)] == [0, 2, 4, 6, 8]


def test_side_by_side():
    left, right = clip(9, 32, 48), clip(17, 32, 64, seed=1)
    both = side_by_side(left, right)
    assert both.shape == (9, 32, 112, 3)
    assert (both[:, :, :48] == left).all() and (both[:, :, 48:] == right[:9]).all()
    scaled = side_by_side(clip(9, 50, 37), right)  # 37 * 32 / 50 is 23.7
    assert scaled.shape == (9, 32, 24 + 64, 3) and (scaled[:, :, 24:] == right[:9]).all()
