"""The list of samples: what it says after each of its writers, kills among them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from justdubit_jax.data.index import FILE, Index, listed
from justdubit_jax.data.precomputed import TENSORS, save
from justdubit_jax.data.samples import find_samples

FILES = {"latents": {"latents": (16, 4, 2, 3)}}


@pytest.fixture
def index(tmp_path) -> Index:
    index = Index(tmp_path)
    index.begin({"a", "b"})
    for name in "ab":
        index.add(name, FILES)
    return index


def test_what_was_added_is_listed_with_its_shapes(index):
    assert listed(index.folder) == {"a": FILES, "b": FILES}


def test_a_folder_without_a_list_has_none(tmp_path):
    assert listed(tmp_path) is None


def test_rows_that_left_the_data_set_leave_the_list_and_are_told(index):
    assert index.begin({"b", "c"}) == ["a"]
    assert listed(index.folder) == {"b": FILES}


def test_a_sample_leaves_the_list_before_its_files_go(index, monkeypatch):
    seen = []
    monkeypatch.setattr("justdubit_jax.data.index.remove", lambda *_: seen.append(listed(folder)))
    folder = index.folder
    index.remove("a")
    assert seen == [{"b": FILES}]


def test_removed_files_are_gone_in_every_folder(index):
    paths = [index.folder / role / "a.safetensors" for role in TENSORS]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    index.remove("a")
    assert not any(path.exists() for path in paths)


def test_it_ends_sorted_with_a_line_a_sample(index):
    index.remove("a")
    index.add("a", FILES)
    lines = (index.folder / FILE).read_text().splitlines()
    assert len(lines) == 4
    index.finish()
    names = [json.loads(line)["name"] for line in (index.folder / FILE).read_text().splitlines()]
    assert names == ["a", "b"] and listed(index.folder) == {"a": FILES, "b": FILES}


@pytest.mark.parametrize("cut", range(2, 60, 8))
def test_a_line_cut_off_by_a_kill_counts_for_nothing(index, cut):
    path = index.folder / FILE
    index.add("c", FILES)
    path.write_bytes(path.read_bytes()[:-cut])
    assert listed(index.folder) == {"a": FILES, "b": FILES}
    index.add("d", FILES)
    assert listed(index.folder) == {"a": FILES, "b": FILES, "d": FILES}


def test_what_else_a_line_says_stays(index):
    path = index.folder / FILE
    line = {"name": "b", "files": FILES, "made": {"latents": "0123"}}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    index.begin({"b"})
    assert json.loads(path.read_text())["made"] == {"latents": "0123"}


WRITER = """
import sys
from justdubit_jax.data.index import Index
index, mine = Index(__import__("pathlib").Path(sys.argv[1])), range(int(sys.argv[2]), 200, 2)
index.begin({str(n) for n in range(200)})
for n in mine:
    index.remove(str(n))
    index.add(str(n), {"latents": {"latents": [n]}})
    if n % 20 < 2:
        index.finish()
"""


def test_two_processes_lose_nothing_of_each_other(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(k)]) for k in (0, 1)]
    assert [writer.wait() for writer in writers] == [0, 0]
    want = {str(n): {"latents": {"latents": (n,)}} for n in range(200)}
    assert listed(tmp_path) == want


class Killed(BaseException):
    pass


def test_whatever_moment_it_is_killed_at_what_is_listed_is_whole(tmp_path, monkeypatch):
    """Two samples made anew, as preprocessing does, killed before each touch of the disk."""
    folders = {role: role for role in TENSORS}
    left = 10**9

    def until_killed(touch):
        def count(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return touch(*args, **kwargs)

        return count

    def make(root: Path, generation: int):
        index = Index(root)
        index.begin({"a", "b"})
        for name in "ab":
            index.remove(name)
            files = {}
            for role in TENSORS:
                tensors = {t: np.full(generation, generation, np.float32) for t in TENSORS[role]}
                files[role] = save(root, role, name, tensors, {})
            index.add(name, files)
        index.finish()

    def kill_at(moment: int) -> bool:
        nonlocal left
        root = tmp_path / str(moment)
        make(root, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until_killed(os.replace))
            patch.setattr(Path, "unlink", until_killed(Path.unlink))
            patch.setattr(Index, "_append", until_killed(Index._append))
            left = moment
            try:
                make(root, 2)
            except Killed:
                pass
            else:
                return False
            finally:
                left = 10**9
        samples = find_samples(root, folders) if listed(root) else []
        for sample in samples:
            said = {shape for shapes in sample.shapes.values() for shape in shapes.values()}
            (generation,) = {
                x
                for path in sample.files.values()
                for x in load_file(path).values()
                for x in map(float, x)
            }
            assert said == {(int(generation),)}
        return True

    moments = next(k for k in range(200) if not kill_at(k))
    assert moments > 2 * len(TENSORS)
