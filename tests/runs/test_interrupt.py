"""SIGTERM and Ctrl-C: what is done is saved, and the same command continues."""

import os
import signal

import pytest
from helpers.toy import EXTRAS, FOUR, config, same

from justdubit_jax import train
from justdubit_jax.runs import metrics
from justdubit_jax.runs.interrupt import Interrupt
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as in a terminal, though the tests may run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "sent, code",
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.deep)],
)
def test_a_signal_saves_and_the_same_command_continues(
    demo, four_steps, tmp_path, monkeypatch, capsys, sent, code
):
    def add(self, at, *rest):
        original(self, at, *rest)
        if at == 3:
            os.kill(os.getpid(), sent)

    original = metrics.Metrics.add
    every = "--config.checkpoints.interval=2"
    run = config(demo, tmp_path / "out", *FOUR, *EXTRAS, every)
    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "add", add)
        assert train.main(run) == code
    printed = capsys.readouterr().err
    assert "stopping: this step is finished and saved" in printed
    assert ("Ctrl-C again" in printed) == (sent == signal.SIGINT)
    assert "stopped at step 3; the same command continues" in printed
    assert Checkpoints(tmp_path / "out/state", read_only=True).steps == [2, 3]
    assert RunFolder(tmp_path / "out").lora(3).is_file()
    assert train.main(run) == 0
    for mean in (False, True):
        assert same(
            RunFolder(tmp_path / "out").lora(4, mean),
            RunFolder(four_steps).lora(4, mean),
        )


@pytest.mark.parametrize("code", [143, 0])
def test_sigterm_before_the_first_step_ends_at_once(demo, tmp_path, monkeypatch, code):
    def load(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "load_base", load)
    with pytest.raises(SystemExit) as ended:
        train.main(config(demo, tmp_path / "out", *FOUR), term_code=code)
    assert ended.value.code == code


def test_ctrl_c_ends_at_once_where_there_is_nothing_to_save_and_the_second_time():
    told: list[str] = []
    with Interrupt(told.append) as interrupt:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.asked and not told
        interrupt.guarded = True
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked and interrupt.code == 130 and len(told) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.asked
