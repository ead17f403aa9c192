"""Names of samples: no two alike, none outside of its folder, none that a file system refuses."""

import json
import os
from pathlib import Path

import pytest

from justdubit_jax.data.names import OUTSIDE, key
from justdubit_jax.data.rows import Columns, read_rows, read_table
from justdubit_jax.errors import InputError

COLUMNS = Columns("caption", "media_path", None, None)


def names(tmp_path: Path, *clips: str) -> list[str]:
    rows = [{"caption": f"row {i}", "media_path": clip} for i, clip in enumerate(clips)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    return [row.name for row in read_rows(tmp_path / "d.json", COLUMNS)]


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        ("clips/a.mp4", "clips/a"),
        ("./clips//a.mp4", "clips/a"),
        ("clips/../a.mp4", "a"),
        ("take.1.final.mp4", "take.1.final"),
        (".hidden.mp4", ".hidden"),
        ("no suffix", "no suffix"),
        ("a b/ü [1] %s.mp4", "a b/ü [1] %s"),
        ("...mp4", "___mp4"),
    ],
)
def test_a_name_is_the_path_below_the_data_set(tmp_path, clip, name):
    assert names(tmp_path, clip, str(tmp_path / "z.mp4")) == [name, "z"]


def test_a_clip_elsewhere_stays_inside(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    clips = ("../a.mp4", "/elsewhere/a.mp4", "/elsewhere/b/../../a.mp4", "../../../../../../..")
    found = names(folder, *clips)
    assert len(set(found)) == 4
    for name in found:
        assert name.startswith(f"{OUTSIDE}/") and ".." not in name and name.count("/") == 1
    # The same, whatever else is in the table and from wherever it is read.
    assert names(folder, *reversed(clips)) == found[::-1]


def test_a_data_set_of_links_is_named_as_it_looks(tmp_path):
    """A hub's cache: every file is a link to a hash elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    (snapshot / "clips").mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "d.json").symlink_to("../../blobs/0123")
    for name in ("a", "b"):
        (blobs / (name * 8)).touch()
        (snapshot / f"clips/{name}.mp4").symlink_to(f"../../../blobs/{name * 8}")
    assert names(snapshot, "clips/a.mp4", "clips/b.mp4") == ["clips/a", "clips/b"]
    (tmp_path / "here").symlink_to(snapshot)
    assert names(tmp_path / "here", str(snapshot / "clips/a.mp4")) == ["clips/a"]


def test_equal_stems_do_not_share_files(tmp_path):
    found = names(tmp_path, "a.mp4", "a.mov", "b/a.mp4", "A.mp4", "/x/a.mp4", "/y/a.mp4", "a.mp4")
    assert found[0] == "a" and found[2] == "b/a"
    assert len({key(name) for name in found}) == 7  # even where capitals make no difference


def test_the_same_row_twice_is_a_fault(tmp_path):
    row = '{"caption": "x", "media_path": "a.mp4"}\n'
    (tmp_path / "d.jsonl").write_text(row * 2)
    table = read_table(tmp_path / "d.jsonl", COLUMNS)
    assert [r.name for r in table.rows] == ["a"]
    assert "line 2" in table.faults[0] and "those of line 1" in table.faults[0]


@pytest.mark.parametrize("letter", ["x", "ü", "漢"])
def test_long_names_fit(tmp_path, letter):
    parts = [letter * (245 // len(letter.encode())) + end for end in ("1", "2")]
    found = names(tmp_path, *(f"{part}/{part}.mp4" for part in parts))
    assert len(set(found)) == 2
    for name in found:
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir()
        path.touch()
        assert all(len(os.fsencode(part)) <= 113 for part in Path(name).parts)


def test_a_zero_byte_is_a_fault(tmp_path):
    with pytest.raises(InputError, match="row 1: a zero byte"):
        names(tmp_path, "a\0b.mp4")
