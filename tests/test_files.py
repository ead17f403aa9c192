import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors, replacing, save_safetensors


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


def test_a_file_that_is_opened_is_closed(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2)}, {"key": "value"})
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert file.metadata() == {"key": "value"}
    with pytest.raises(SafetensorError, match="closed"):
        file.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected a golden file"),
        (b"no", "not a readable golden file: "),
        (b"\x00" * 20, "not a readable golden file: "),
    ],
)
def test_files_that_cannot_be_opened_are_named(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: {message}"), open_tensors(path, "golden file"):
        raise AssertionError("opened")


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2)}, {})
    with (
        pytest.raises(InputError, match=r"x\.safetensors: not a readable LoRA file: .*\bb\b"),
        open_tensors(tmp_path / "x.safetensors", "LoRA file") as file,
    ):
        file.get_tensor("b")
