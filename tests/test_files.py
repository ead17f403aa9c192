import numpy as np
import pytest
from safetensors.numpy import load_file

from justdubit_jax.files import replacing, save_safetensors


def test_tensors_keep_shape_and_order(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_safetensors(path, {"scalar": np.array(0.5, np.float32), "matrix": matrix}, {})
    tensors = load_file(path)
    assert tensors["scalar"].shape == ()
    np.testing.assert_array_equal(tensors["matrix"], matrix)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
