"""Kernels of a compiled program: read from the text of a small one, for one of two H100.

It is of a loop of three trips: x = attention(tanh(x @ w)), x [1, 128, 256], four heads of 64, each
half of the rows of w [256, 256] on one of the cards, in bfloat16.
"""

import csv
from pathlib import Path

import pytest

from justdubit_jax.planning.cards import read_card
from justdubit_jax.planning.estimate import estimate
from justdubit_jax.planning.hlo import Program
from justdubit_jax.planning.kernels import LAUNCH

TEXT = Path(__file__).with_name("two_cards.hlo.txt").read_text()
CARD = read_card("h100-sxm")


@pytest.fixture(scope="module")
def made():
    return estimate(TEXT, CARD, devices=2)


def of(made, kind: str):
    (found,) = (kernel for kernel in made.kernels if kernel.kind == kind)
    return found


def test_what_kernels_do(made):
    product, attention = of(made, "product"), of(made, "attention")
    assert product.times == attention.times == 3
    assert product.operations == 2 * 128 * 256 * 256
    assert product.bytes == 2 * (128 * 256 + 256 * 256 + 128 * 256)  # not its workspace
    assert product.shape == "bf16[128,256]"
    assert attention.operations == 4 * 4 * 128 * 128 * 64
    assert made.operations == 3 * (product.operations + attention.operations)


def test_a_slice_of_a_stack_counts_as_a_slice(made):
    copy = of(made, "async copy")
    assert copy.bytes == 2 * 2 * 128 * 256 + 4 and copy.times == 3  # and its number in the stack


def test_what_is_sent(made):
    gather = of(made, "all-gather")
    assert gather.bytes == 2 * 256 * 256 / 2  # the other card's half
    assert gather.seconds == pytest.approx(gather.bytes / CARD.link + 8e-6)
    assert made.collectives == [gather] and gather.waits == gather.seconds


def test_no_kernel_is_shorter_than_a_launch(made):
    """Here all are that short, and the copy is waited for at once."""
    kernels = [kernel for kernel in made.kernels if kernel.kind != "all-gather"]
    assert {kernel.seconds for kernel in kernels} == {LAUNCH}
    loop = [kernel for kernel in made.kernels if kernel.times == 3]
    assert [kernel.kind for kernel in loop] == [
        *("async copy", "all-gather", "product", "fusion", "attention", "fusion")
    ]
    assert made.hidden == 0 and made.launches == 3 * len(loop) + 2
    assert made.seconds == pytest.approx(sum(kernel.total for kernel in made.kernels))


def test_what_is_sent_beside_a_product_is_hidden():
    """The gather started, then another product, then the gather waited for."""
    (gather,) = (line for line in TEXT.splitlines() if " all-gather(" in line)
    (product,) = (line for line in TEXT.splitlines() if "%custom-call.1 = " in line)
    name, shape = "%all-gather.1.2", "bf16[256,256]{1,0}"
    start = gather.replace(f"{name} = {shape}", f"%started = (bf16[128,256]{{1,0}}, {shape})")
    other = product.replace("%custom-call.1 = ", "%other = ").replace(name, "%bitcast.1.0")
    lines = (
        start.replace(" all-gather(", " all-gather-start("),
        other,
        f"  {name} = {shape} all-gather-done(%started)",
    )
    made = estimate(TEXT.replace(gather, "\n".join(lines)), CARD, devices=2)
    product_seconds = next(k for k in made.kernels if k.name == "other").seconds
    assert made.hidden == pytest.approx(3 * product_seconds)
    assert of(made, "all-gather").waits > 0


def test_a_copy_beside_a_product_is_not_hidden():
    """On a card they ran in turn. The copy waited for behind the attention, not at once."""
    lines = TEXT.splitlines()
    (done,) = (line for line in lines if "= bf16[1,128,256]{2,1,0} fusion-done(" in line)
    (add,) = (k for k, line in enumerate(lines) if "%loop_add_fusion = " in line)
    lines.insert(add, done)
    lines.remove(done)
    moved = estimate("\n".join(lines), CARD, devices=2)
    copy = of(moved, "async copy")
    assert copy.waits == copy.seconds and moved.hidden == 0
    assert moved.seconds == pytest.approx(estimate(TEXT, CARD, 2).seconds)


def test_lines_of_code_are_the_projects_own(made):
    assert of(made, "attention").lines == ("models/attention.py:58 _cudnn_attention",)
    assert of(made, "product").lines == ()  # of no file of the project


def test_the_dearest_stand_first_and_all_of_them_in_a_table(made, tmp_path):
    first, *_ = made.dearest(3)
    assert first.what == "all-gather" and first.runs == 3
    assert [share.seconds for share in made.by_kind()] == sorted(
        (share.seconds for share in made.by_kind()), reverse=True
    )
    made.write_kernels(tmp_path / "kernels.csv")
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(made.kernels)
    total = sum(int(row["times"]) * float(row["waits"]) for row in rows)
    assert total == pytest.approx(made.seconds, rel=1e-3)


def test_every_instruction_is_read():
    program = Program(TEXT)
    assert program.entry == "main.3_spmd"
    loop = program.computations["region_0.1_spmd"]
    assert loop["custom-call.1"].target == "__cublas$lt$matmul"
    assert [array.sizes for array in loop["custom-call.1"].arrays] == [(128, 256), (4194304,)]
    assert loop["fusion-start"].called("calls") == "fused_dynamic_slice.clone"
