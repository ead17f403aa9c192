import shutil
import subprocess
import sys

import pytest
from helpers.commands import REPO
from helpers.toy import same
from safetensors import safe_open

from justdubit_jax.runs.output import RunFolder


@pytest.mark.parametrize("mean", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_the_export_of_an_earlier_step_is_the_one_made_then(four_steps, tmp_path, mean):
    """While the run saves and removes steps, whose folders are left alone."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(four_steps / "state", folder.state)
    under_way = [folder.state / name for name in ("5.orbax-checkpoint-tmp", ".removed-0")]
    for path in under_way:
        path.mkdir()
        (path / "half").write_text("half")
    tool = [sys.executable, "tools/export_lora.py", "--precision", "float32"]
    command = [*tool, "--run", str(folder.path), "--step", "2", *["--mean"] * mean]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    ours, then = folder.lora(2, mean), RunFolder(four_steps).lora(2, mean)
    assert done.stdout == f"{ours}\n"
    assert same(ours, then)
    with safe_open(ours, "numpy") as a, safe_open(then, "numpy") as b:
        assert a.metadata() == b.metadata()
    assert all((path / "half").is_file() for path in under_way)
