"""Runs that are continued otherwise than they began."""

import re
import shutil

import pytest
from helpers.lines import json_lines
from helpers.toy import EXTRAS, FOUR, config

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.runs import fingerprint
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints


@pytest.mark.parametrize(
    "flag",
    [
        "lora.rank=4",
        "seed=1",
        "optimization.learning_rate=1e-4",
        "validation.holdout=1",
        "training_strategy.first_frame_conditioning_p=0.5",
    ],
)
def test_a_run_is_not_continued_as_another(demo, four_steps, tmp_path, flag):
    output = tmp_path / "out"
    shutil.copytree(four_steps, output)
    with pytest.raises(InputError, match=re.escape(flag.partition("=")[0])):
        train.main(config(demo, output, *FOUR, *EXTRAS, f"--config.{flag}"))


@pytest.mark.deep
def test_harmless_keys_may_change(demo, four_steps, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(four_steps, output)
    flags = ("--config.optimization.steps=5", "--config.checkpoints.interval=5")
    train.main(config(demo, output, *EXTRAS, *flags, "--config.mesh.data=2"))  # two devices now
    assert "mesh.data" in capsys.readouterr().err
    assert RunFolder(output).lora(5).is_file()
    assert [line["step"] for line in json_lines(output / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_another_data_set_under_the_same_name_is_noticed(demo, four_steps):
    mark = Checkpoints(four_steps / "state", read_only=True).meta(4)["fingerprint"]
    other = fingerprint.fingerprint(config(demo, four_steps, *FOUR, *EXTRAS), {}, ["x"])
    with pytest.raises(InputError, match="the data set is another"):
        fingerprint.check_same(mark, other | {fingerprint.BASE: mark[fingerprint.BASE]})
