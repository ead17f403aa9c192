import numpy as np
from helpers.made_up import record
from PIL import Image

from justdubit_jax.runs.charts import _running_mean, loss_curve_png


def test_loss_curve(tmp_path):
    for count in (0, 1, 300):
        records = [record(step, 1 / (1 + step / 50)) for step in range(1, count + 1)]
        if count == 300:
            records[40]["loss_audio"] = float("nan")
        loss_curve_png(tmp_path / "run" / "loss.png", records)
        with Image.open(tmp_path / "run" / "loss.png") as picture:
            assert picture.size == (990, 550)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["loss.png"]


def test_running_mean_passes_over_what_is_not_finite():
    got = _running_mean(np.array([np.nan, 1, 3, np.inf, 5]), 2)
    np.testing.assert_array_equal(got, [np.nan, 1, 2, 3, 5])
    np.testing.assert_array_equal(_running_mean(np.array([1.0, 2.0]), 1), [1, 2])
