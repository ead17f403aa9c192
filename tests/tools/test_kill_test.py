import subprocess
import sys

import pytest
from helpers.commands import ONE_DEVICE, REPO


@pytest.mark.deep
def test_a_kill_at_a_random_moment_changes_nothing(demo):
    """The short form; `tools/kill_test.py --kills 20` is the long one."""
    command = [sys.executable, "tools/kill_test.py", "--kills", "1", "--steps", "6", "--plain"]
    done = subprocess.run(
        [*command, "--demo", str(demo)], capture_output=True, text=True, cwd=REPO, env=ONE_DEVICE
    )
    assert done.returncode == 0, done.stderr
    assert "the same LoRA after 1 kills" in done.stdout
