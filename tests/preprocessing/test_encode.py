"""What one bad row costs of the group that is encoded with it."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from justdubit_jax.data.index import Index
from justdubit_jax.data.rows import Row
from justdubit_jax.preprocessing import encode as encoding
from justdubit_jax.preprocessing.encode import Outcome, each_of_group, encode_captions

ROWS = [Row(name, "", Path(f"{name}.mp4"), None, None) for name in ("a", "b", "c")]


def each(tmp_path, bad_to_encode: str, bad_to_write: str, kind: type[BaseException]):
    calls = []

    def encode(group):
        calls.append([row.name for row in group])
        if any(row.name in bad_to_encode for row in group):
            raise kind("not encoded")
        return [row.name.upper() for row in group]

    def write(row, made):
        if row.name in bad_to_write:
            raise kind("not\nwritten")
        return Outcome(row, {made: {}})

    index = Index(tmp_path)
    outcomes = list(each_of_group(ROWS, encode, write, lambda row: row, index))
    return [outcome.reason or outcome.files for outcome in outcomes], calls


@pytest.mark.parametrize("kind", [ValueError, MemoryError, OSError])
def test_the_others_of_a_group_are_finished(tmp_path, kind):
    outcomes, calls = each(tmp_path, "b", "c", kind)
    reasons = [
        f"{name}.mp4: {kind.__name__}: not {what}"
        for name, what in (("b", "encoded"), ("c", "written"))
    ]
    assert outcomes == [{"A": {}}, *reasons]
    assert calls == [["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_a_sound_group_is_encoded_at_once(tmp_path):
    outcomes, calls = each(tmp_path, "", "", ValueError)
    assert outcomes == [{"A": {}}, {"B": {}}, {"C": {}}] and calls == [["a", "b", "c"]]


def test_ctrl_c_is_no_fault_of_a_row(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        each(tmp_path, "a", "", KeyboardInterrupt)


def test_each_clip_of_a_group_gets_its_own_caption(tmp_path, monkeypatch):
    rows = [dataclasses.replace(row, caption=row.name) for row in ROWS]
    saved = {}

    def save(output, role, name, tensors, metadata):
        saved[name] = tuple(tensors[key].item() for key in ("video_context", "audio_context"))
        return {}

    def encode(prompts):
        return [tuple(np.full((1, 1), sign * ord(p), "f") for sign in (1, -1)) for p in prompts]

    monkeypatch.setattr(encoding, "save", save)
    monkeypatch.setattr(encoding, "metadata_of", lambda *_: {})
    args = argparse.Namespace(batch_size=2, remove_llm_prefixes=False, lora_trigger=None)
    clips = [Outcome(row, {}) for row in rows]
    done = list(encode_captions(args, encode, clips, Index(tmp_path)))
    assert [(outcome.row.name, outcome.reason) for outcome in done] == [(n, "") for n in "abc"]
    assert saved == {name: (ord(name), -ord(name)) for name in "abc"}
