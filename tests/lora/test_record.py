import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from justdubit_jax.errors import InputError
from justdubit_jax.lora.record import LoRARecord, read_record


@pytest.mark.parametrize("alpha", [8, 8.0, 0.1])
def test_metadata_comes_back_as_it_was_written(alpha):
    record = LoRARecord(rank=8, alpha=alpha, cross_timestep="other", step=250)
    metadata = record.to_metadata()
    assert metadata == {
        "rank": "8",
        "alpha": str(alpha),
        "cross_timestep": "other",
        "reference_downscale_factor": "1",
        "step": "250",
    }
    again = LoRARecord.from_metadata(metadata, "x")
    assert again == record and again.to_metadata() == metadata


def test_what_is_not_known_is_left_out():
    assert "step" not in dataclasses.replace(LoRARecord(8, 8), step=None).to_metadata()
    assert LoRARecord.from_metadata({"format": "pt"}, "x") == LoRARecord()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rank", "8.5", "rank is '8.5', expected a whole number"),
        ("alpha", "high", "alpha is 'high', expected a number"),
        ("cross_timestep", "mine", "cross_timestep is 'mine', expected own or other or other_gate"),
    ],
)
def test_bad_metadata_names_the_file(tmp_path, name, text, message):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.zeros(1)}, path, {name: text})
    with pytest.raises(InputError, match=f"^{path}: metadata {message}$"):
        read_record(path)


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("none")
    with pytest.raises(InputError, match="not a readable LoRA file"):
        read_record(path)
