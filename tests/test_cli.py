"""The types of the commands' flags."""

import os

import jax
import pytest

from justdubit_jax import cli
from justdubit_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GB", 80e9), ("79.6GiB", 79.6 * 2**30), ("24e9", 24e9), ("1 tb", 1e12), ("512 MiB", 2**29)],
)
def test_sizes_as_people_write_them(text, count):
    assert cli.byte_count(text) == int(count)


@pytest.mark.parametrize("text", ["much", "80 apples", "", "1.2.3GB", "nan"])
def test_another_size_is_refused_by_the_flags_name(text):
    parser = cli.Parser(prog="test")
    parser.add_argument("--memory", type=cli.byte_count)
    with pytest.raises(InputError, match=f"--memory: '{text}': expected a size such as 80GB"):
        parser.parse_args(["--memory", text])


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "a"])
def test_a_count_is_a_whole_number_above_0(text):
    parser = cli.Parser(prog="test")
    parser.add_argument("--count", type=cli.positive)
    assert parser.parse_args(["--count", "7"]).count == 7
    with pytest.raises(InputError, match=f"--count: '{text}': expected a whole number above 0"):
        parser.parse_args([f"--count={text}"])


@pytest.mark.parametrize(("asked", "used"), [(None, "highest"), ("tensorfloat32", "tensorfloat32")])
def test_float32_is_float32_unless_asked_otherwise(asked, used, monkeypatch):
    before = jax.config.jax_default_matmul_precision
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # taken back after the test
    try:
        jax.config.update("jax_default_matmul_precision", asked)
        cli.set_up_jax()
        assert jax.config.jax_default_matmul_precision == used
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize(
    "given, flags",
    [
        (None, ["--xla_gpu_enable_triton_gemm=false"]),
        ("--xla_a=1", ["--xla_gpu_enable_triton_gemm=false", "--xla_a=1"]),
        # XLA takes the last.
        (
            "--xla_gpu_enable_triton_gemm=true",
            ["--xla_gpu_enable_triton_gemm=false", "--xla_gpu_enable_triton_gemm=true"],
        ),
        ("--xla_gpu_enable_triton_gemm=false", ["--xla_gpu_enable_triton_gemm=false"]),
    ],
)
def test_what_the_environment_tells_xla_stands_last(monkeypatch, given, flags):
    if given is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    cli.set_up_jax()
    assert os.environ["XLA_FLAGS"].split() == flags
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
