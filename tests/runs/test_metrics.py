"""What a run writes down of itself, and whom it tells."""

import re
import sys
import types

import pytest
from helpers.published import published

from justdubit_jax.errors import InputError
from justdubit_jax.runs.metrics import open_logs
from justdubit_jax.training import settings


def test_wandb_is_told_what_the_settings_say(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    def init(**arguments):
        raise Refused(f"{arguments['project']} {arguments['entity']} {arguments['tags']}")

    flags = ("wandb.enabled=True", "wandb.entity=us", "wandb.tags=('a', 'b')")
    run = settings.read(published(*flags, f"output_dir={tmp_path}"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Refused))
    with pytest.raises(InputError, match=re.escape("wandb: justdubit us ['a', 'b']")):
        open_logs(run, 0, "")
