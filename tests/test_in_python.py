"""The snippet of docs/in-python.md, on the demo's files."""

import ast
import re

import jax
import numpy as np
import pytest
from helpers.commands import REPO

from justdubit_jax.lora.files import config_of

PAGE = REPO / "docs/in-python.md"


@pytest.mark.deep
def test_the_snippet_trains_a_step_and_dubs(demo, tmp_path, monkeypatch):
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    tree = ast.parse(text)
    imports = (ast.Import, ast.ImportFrom)
    assert sum(not isinstance(node, imports) for node in tree.body) < 25
    private = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr[0] == "_"]
    assert private == []
    for word, path in {
        '"MODEL"': demo / "assets/ltx-2-tiny.safetensors",
        '"PRECOMPUTED"': demo / "dataset/.precomputed",
        '"CLIP"': demo / "dataset/clips/000_reference.mp4",
        '"GEMMA"': demo / "assets/gemma",
        '"configs/dub.py"': REPO / "configs/demo.py",  # few modules at a small rank
    }.items():
        assert word in text
        text = text.replace(word, repr(str(path)))
    text = text.replace("steps=30", "steps=2")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(text, str(PAGE), "exec"), names)  # as a reader would paste it
    assert config_of(tmp_path / "lora.safetensors").rank == 8
    assert np.isfinite(jax.device_get(names["metrics"]["loss"]))
    frames = np.concatenate(list(names["frames"]))
    assert frames.shape == (25, 64, 96, 3) and names["sound"].shape[0] == 2
