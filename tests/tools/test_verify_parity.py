"""The parity tool as a user runs it: its table, its files, its exit codes."""

import shutil
import subprocess
import sys
from pathlib import Path

import checks.vectors
import jax.numpy as jnp
import numpy as np
import pytest
import verify_parity
from helpers.golden import FOLDER
from parity import end_to_end
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax.dubbing import job
from justdubit_jax.errors import InputError
from justdubit_jax.preprocessing import encode

TOOL = Path(__file__).parents[2] / "tools" / "verify_parity.py"


def verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rewrite(source: str, path: Path, changed: dict[str, np.ndarray]) -> None:
    """Copy a golden file with some of its tensors replaced."""
    source_path = FOLDER / f"{source}.safetensors"
    with safe_open(source_path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(source_path) | changed, path, metadata=metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two files in order, one under another name; one expectation off by 1e-3; two bad ones."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copy(FOLDER / "tokens.safetensors", folder)
    shutil.copy(FOLDER / "audio_mel.safetensors", folder / "waveforms.safetensors")
    vocoder = load_file(FOLDER / "vocoder_20.safetensors")["expect.waveform_odd"].copy()
    vocoder[0, 1, 5] += 1e-3 * np.abs(vocoder).max()
    rewrite("vocoder_20", folder / "vocoder_20_b.safetensors", {"expect.waveform_odd": vocoder})
    target = load_file(FOLDER / "transformer_19b.safetensors")["input.video.target"]
    rolled = {"input.video.target": np.roll(target, 1)}
    rewrite("transformer_19b", folder / "transformer_19b.safetensors", rolled)
    (folder / "broken.safetensors").write_bytes(b"not a safetensors file")
    return folder


def test_a_folder_with_good_and_bad_files(folder, tmp_path):
    result = verify(folder, "--out", tmp_path)
    assert result.returncode == 1, result.stderr
    verdicts = {
        words[0]: " ".join(words[3:])
        for line in result.stdout.splitlines()
        if len(words := line.split()) > 3
    }
    assert verdicts["log_mel_16k"] == verdicts["video_tokens"] == verdicts["waveform"] == "ok"
    assert verdicts["waveform_odd"] == "FAIL"
    failed = [line for line in result.stdout.splitlines() if line.startswith("  FAIL: ")]
    assert len(failed) == 2
    assert "not a readable golden file" in failed[0]
    assert "input.video.target is not contiguous" in failed[1]
    assert "3 FAIL" in result.stdout.splitlines()[-1]

    for name in ("tokens", "waveforms", "vocoder_20_b"):
        got = load_file(tmp_path / f"{name}.safetensors")
        want = load_file(folder / f"{name}.safetensors")
        assert got
        for key, tensor in got.items():
            assert key.startswith("expect.")
            assert (tensor.shape, tensor.dtype) == (want[key].shape, want[key].dtype)
            np.testing.assert_allclose(tensor, want[key], rtol=0, atol=2e-3 * abs(want[key]).max())


def test_one_good_file(folder):
    result = verify(folder, "--only", "tokens")
    assert result.returncode == 0, result.stderr
    assert "rope.split.pad1.cos" in result.stdout
    assert "waveform" not in result.stdout
    assert result.stdout.splitlines()[-1].endswith(" ok")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([FOLDER, "--only", "nothing"], "no file nothing.safetensors"),
        ([FOLDER, "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_bad_input_is_one_line(arguments, reason):
    result = verify(*arguments)
    assert result.returncode == 2
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


WHOLE = FOLDER.with_name("golden_e2e")


def test_a_whole_world_is_recognised_and_its_runs_are_named(tmp_path):
    assert verify_parity.names_in(WHOLE) == ["chain"]  # trimmed of what the stages start from
    assert "tokens" in verify_parity.names_in(FOLDER)
    for name in end_to_end.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert end_to_end.recognised(tmp_path) == (name == end_to_end.FILES[-1])


def test_every_tensor_of_a_whole_world_has_its_limit(tmp_path, monkeypatch, capsys):
    """A result within its limit passes; one beyond it, of another shape, or missing does not."""
    world = end_to_end.read_world(WHOLE)
    limits = world.golden.meta["chain_limit"]
    right, wrong = {}, {}
    for name, x in world.golden.expect.items():
        if name.startswith("frames."):
            right[name] = x ^ (np.arange(x.size).reshape(x.shape) % 3 == 0)  # a level, of a third
            wrong[name] = x ^ 3
        else:
            right[name], wrong[name] = x * (1 - 0.9 * limits[name]), x * (1 - 1.1 * limits[name])
    monkeypatch.setattr(end_to_end, "compute", lambda world, run: right)
    assert verify_parity.verify_world(WHOLE, None, tmp_path).keys() == {"ok"}
    assert set(load_file(tmp_path / "chain.safetensors")) == {f"expect.{name}" for name in right}
    assert "chain (" in capsys.readouterr().out
    for name in right:
        for other in ({name: wrong[name]}, {name: right[name][None]}):
            rows = list(end_to_end.compare(world, "chain", right | other))
            assert {row.tensor for row in rows if row.verdict == "FAIL"} == {name}
        rows = end_to_end.compare(world, "chain", {k: x for k, x in right.items() if k != name})
        assert {row.tensor for row in rows if row.verdict == "FAIL"} == {name}


def test_a_world_that_cannot_be_computed_fails(monkeypatch, capsys):
    def fails(world, run):
        raise ValueError("no such thing")

    monkeypatch.setattr(end_to_end, "compute", fails)
    assert verify_parity.verify_world(WHOLE, None, None) == {"FAIL": 1}
    assert "FAIL: ValueError: no such thing" in capsys.readouterr().out


def test_models_run_in_bfloat16_and_are_compared_with_limits_of_their_own():
    exact, rounded = (
        list(checks.vectors.rows(FOLDER / "text_19b.safetensors", dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert len(rounded) < len(exact)  # masks have no rounding
    assert max(row.error for row in exact if row.limit) < 2e-5
    assert all(1e-4 < row.error <= row.limit == 3e-2 for row in rounded)


def test_files_to_files_are_of_float32(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", str(WHOLE), "--dtype", "bfloat16"])
    with pytest.raises(InputError, match="golden_e2e is of files to files, compared in float32"):
        verify_parity.parse()


def test_the_commands_are_run_in_float32_where_theirs_is_another(monkeypatch):
    for module in (encode, job):
        monkeypatch.setattr(module, "default_dtype", lambda: jnp.bfloat16)
    with end_to_end.in_float32():
        assert encode.default_dtype() == job.default_dtype() == jnp.float32
    assert encode.default_dtype() == jnp.bfloat16
