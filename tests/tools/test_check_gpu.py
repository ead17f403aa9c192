"""The check of a GPU, on a CPU: small, part by part, as a user runs it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import check_gpu
import numpy as np
import pytest
from checks import attention
from checks.profile import Run
from checks.report import as_json, markdown, read_json
from checks.result import Row, Section
from checks.training import by_kind, kind_of
from helpers.commands import REPO

from justdubit_jax.errors import InputError
from justdubit_jax.planning.cards import read_card
from justdubit_jax.planning.estimate import estimate

TOOL = REPO / "tools" / "check_gpu.py"


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.deep
def test_a_part_in_a_process_of_its_own_and_one_without_time(tmp_path):
    file, table = tmp_path / "found.json", tmp_path / "found.md"
    done = check("--only", "machine", "devices", "--json", file, "--markdown", table)
    assert done.returncode == 0, done.stderr
    machine, devices = read_json(file.read_text())
    rows = {row.what: row for row in machine.rows}
    assert rows["driver"].got == "none" and float(rows["copy, read and written"].got) > 0
    assert not machine.trouble and devices.seconds > 0
    assert table.read_text() in done.stdout and "| machine | jax |" in done.stdout
    late = check("--only", "machine", "--minutes", "0.01", "--json", file)
    assert late.returncode == 1 and "no time left" in late.stdout
    (section,) = json.loads(file.read_text())
    assert section["failed"]


@pytest.mark.deep
def test_a_part_that_fails_keeps_what_it_found_and_takes_no_other_with_it(tmp_path):
    (tmp_path / "tokens.safetensors").write_bytes(b"no file of tensors")
    done = check("--only", "float32", "machine", "--golden", tmp_path)
    assert done.returncode == 1
    assert "not a readable golden file" in done.stdout and "| machine | jax |" in done.stdout


@pytest.mark.deep
def test_the_parts_that_compile():
    done = check("--only", "step", "programs", "--runs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("seconds a step", "in a row, as in training", "sample: seconds"):
        assert words in done.stdout


def test_unknown_parts_are_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--only", "machines"])
    with pytest.raises(InputError, match="--only machines: expected some of machine, attention"):
        check_gpu.parse_arguments()


def test_wrong_attention_is_seen(monkeypatch):
    case = attention.Case(8, 7, 2, 16, (7, 3))
    assert max(attention.errors(case).values()) < attention.LIMIT
    wrong = lambda q, k, v, lengths: attention.xla_attention(q, k, v)  # noqa: E731
    monkeypatch.setattr(attention, "attention", wrong)
    assert attention.errors(case)["result"] > attention.LIMIT


def test_the_table_begins_with_what_is_furthest_from_the_estimates():
    rows = (
        Row("near", 1.1, "s", expected=1.0),
        Row("half", 0.5, "s", expected=1.0),
        Row("thrice", 3.0, "s", expected=1.0),
        Row("words", "so"),
        Row("far", 1.3, "s", expected=1.0),
    )
    sections = [
        Section("step", 1.0, rows),
        Section("attention", 2.0, (Row("x", 2e-2, limit=1e-2),)),
    ]
    first = [line for line in markdown(sections).splitlines() if line.startswith("*")]
    assert [line.split()[2] for line in first] == ["thrice:", "half:", "far:"]
    assert [section.failed for section in sections] == [False, True]
    assert read_json(as_json(sections)) == sections
    assert Row("nan", math.nan, limit=1.0).failed


# As CUPTI named them on an H100.
@pytest.mark.parametrize(
    "name, kind",
    [
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_TNT", "product"),
        (
            "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26",
            "attention backward",
        ),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 128>", "attention backward"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("gemm_fusion_dot_941", "product (not cuBLAS)"),
        ("memcpy32_post", "async copy"),
        ("input_convert_reduce_fusion", "fusion"),
        ("loop_convert_fusion_2", "fusion"),
        ("something else", "other kernels"),
    ],
)
def test_kinds_of_kernels_by_their_names(name, kind):
    assert kind_of(name) == kind


def test_kernels_stand_beside_the_planners():
    card = read_card("h100-sxm")
    text = (REPO / "tests" / "planning" / "two_cards.hlo.txt").read_text()
    made = estimate(text, card, devices=2)
    product = next(kernel for kernel in made.kernels if kernel.kind == "product")
    seen = [
        Run("nvjet", product.name, 3, 2e-3),
        Run("nvjet", "command_buffer_1", 1, 1e-3),
        Run("else", "", 1, 5e-3),
    ]
    rows = {row.what: row for row in by_kind(seen, made, card)}
    assert rows["product"].got == pytest.approx(3.0)
    assert rows["product"].expected == pytest.approx(1e3 * product.total)
    assert rows["other kernels"].got == pytest.approx(5.0)
    assert np.isclose(sum(float(row.got) for row in rows.values()), 8.0)
