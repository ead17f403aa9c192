"""The benchmark as a person runs it, at toy size."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import COMPILE_FAST

from justdubit_jax.errors import InputError

TOOL = Path(__file__).parents[2] / "tools/benchmark.py"
TINY = (
    *("--layers", "1", "--width", "64", "--video-tokens", "8", "--audio-tokens", "4"),
    *("--text-tokens", "4", "--rank", "2", "--runs", "2"),
)


@pytest.mark.deep
def test_a_step_is_timed_and_counted(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, "step", *TINY, "--json", tmp_path / "step.json"],
        env=os.environ | {"XLA_FLAGS": COMPILE_FAST, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mfu" in done.stdout and "n/a" in done.stdout
    record = json.loads((tmp_path / "step.json").read_text())
    step = record["step"]
    assert {"jax", "jaxlib"} <= record["versions"].keys()
    assert len(step["step_seconds_all"]) == 2
    assert step["tflop_per_second"] == pytest.approx(step["model_tflop"] / step["step_seconds"])
    assert 0 < step["model_tflop"] < step["tflop_with_recompute"] < 1e-4
    assert step["peak_memory_source"] == "XLA's plan"
    assert 0 < step["loss"] < 100


@pytest.fixture
def in_process(monkeypatch):
    """The tool without the seconds that a new interpreter takes to import jax."""
    monkeypatch.syspath_prepend(TOOL.parent)
    module = importlib.import_module("benchmark")

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        module.main()

    return run


@pytest.mark.deep
def test_decoding_is_measured_in_processes_of_its_own(tmp_path, in_process):
    arguments = ("--resolution", "64x64", "--frames", 1, 9, "--json", tmp_path / "decode.json")
    in_process("decode", *arguments)
    decode = json.loads((tmp_path / "decode.json").read_text())["decode"]
    first, second = (decode[f"{frames}_frames"]["peak_memory_gb"] for frames in (1, 9))
    assert decode["peak_over_first"] == [1, pytest.approx(second / first)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("step", *TINY, "--peer", "torch"), f"--peer-python {sys.executable}: it has no torch"),
        (("step", *TINY, "--peer", "torch", "--peer-python", "/no/python"), "No such file"),
        (("step", "--width", "100"), "--width 100: expected a multiple of 32"),
        (("step", "--video-tokens", "7"), "--video-tokens 7: expected an even number"),
        (("step", "--runs", "0"), "'0': expected a whole number above 0"),
        (("decode", "--frames", "10"), "10 frames are not a multiple of 8 plus 1"),
    ],
)
def test_bad_input_is_one_line(arguments, reason, in_process):
    with pytest.raises(InputError, match=re.escape(reason)):
        in_process(*arguments)
