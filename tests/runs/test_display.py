"""The display by its text."""

import io

import pytest
from helpers.made_up import record
from rich.console import Console

from justdubit_jax.errors import InputError
from justdubit_jax.runs.display import Display


def show(console: Console) -> None:
    with Display(console, 100) as display:
        display.log("LoRA [video]: 4 modules")
        display.train(record(1, 0.5))
        with display.sampling(1, 2) as tell:
            for done in range(3):
                tell(1, "[VISUAL]: a man\nsays hello", "denoising", done, 2)
            tell(1, "[VISUAL]: a man\nsays hello", "decoding video")
            tell(2, "x" * 100, "denoising", 0, 2)
        unknown = {k: v for k, v in record(2).items() if k != "mfu"}  # an unknown device
        display.train({**unknown, "seconds": 4.0})


def test_plain_lines_without_a_terminal():
    output = io.StringIO()
    show(Console(file=output, width=40))
    lines = output.getvalue().splitlines()
    assert lines[0] == "LoRA [video]: 4 modules"
    assert lines[1] == (
        "step 1/100  loss 0.5000 (video 0.4500, audio 0.5500)  lr 1.00e-04  2.00 s/step  "
        "267 TFLOP/s (MFU 27%)  0:03:18 left"
    )
    assert lines[2:5] == [
        "step 1/100  sample 1/2  denoising  [VISUAL]: a man says hello",
        "step 1/100  sample 1/2  decoding video  [VISUAL]: a man says hello",
        "step 1/100  sample 2/2  denoising  " + "x" * 59 + "…",
    ]
    assert lines[5].endswith(
        "4.00 s/step  267 TFLOP/s (MFU n/a)  0:04:54 left"
    )  # 98 steps at the median of 3 s
    assert len(lines) == 6


def test_bars_in_a_terminal():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200, _environ={"TERM": "xterm"})
    show(console)
    text = output.getvalue()
    assert "LoRA [video]: 4 modules" in text
    assert "training" in text and "2/100" in text and "0:04:54 left" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_an_error_takes_the_bars_down():
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    with (
        pytest.raises(InputError),
        Display(console, 2) as display,
        display.sampling(0, 1) as tell,
    ):
        tell(1, "prompt", "denoising", 0, 30)
        raise InputError("unreadable")
    assert not display._progress.live.is_started and not display._progress.tasks
