"""What is written and shown of how files were taken."""

import json
from fractions import Fraction

from helpers import boxes
from helpers.clips import flash_and_click
from helpers.layout import LTX2
from PIL import Image
from rich.console import Console

from justdubit_jax.data.rows import Row
from justdubit_jax.preprocessing.buckets import parse_buckets
from justdubit_jax.preprocessing.decisions import Decisions, source_metadata
from justdubit_jax.preprocessing.load import load_row


def test_what_was_decided_is_written_and_shown(tmp_path):
    kind = {"frames": 40, "flash": 20, "fps": 30, "size": (64, 96)}
    target = flash_and_click(tmp_path / "a.mp4", **kind)
    boxes.orient(target, 0, 1, -1, 0)
    reference = flash_and_click(tmp_path / "b.mp4", **kind)
    Image.new("L", (96, 64)).save(tmp_path / "m.png")
    rows = [Row(name, "words", target, reference, tmp_path / "m.png") for name in ("a", "b")]
    shapes, decisions = parse_buckets("64x64x25", LTX2), Decisions()
    for row in rows:
        item = load_row(row, shapes, 16_000, LTX2, Fraction(25))
        decisions.add(item)
    own = json.loads(source_metadata(item, "audio_latents")["source"])
    assert own == json.loads(source_metadata(item, "latents")["source"])
    assert {key: own[key] for key in ("turned", "shown", "own_rate", "rate", "resampled")} == {
        **{"turned": "270", "shown": "64x96", "own_rate": "30/1", "rate": "25/1"},
        "resampled": "yes",
    }
    assert own["track"] == "video 1 of 1, h264" and own["cropped"] == "33.3 % of its height"
    assert own["findings"] == ["33 % of its height is cut off to fill the bucket"]
    other = json.loads(source_metadata(item, "reference_latents")["source"])
    assert other["turned"] == "0" and len(other["findings"]) == 1  # its aspect
    console = Console(width=200)
    with console.capture() as shown:
        console.print(decisions.table())
    lines = [line for line in shown.get().splitlines() if "a.mp4" in line or "b.mp4" in line]
    assert len(lines) == 2
    for part in ("media", "30 -> 25", "96x64, turned 270", "33.3 % of its height", "stereo", " 2 "):
        assert part in lines[0]
    (mask,) = [line for line in shown.get().splitlines() if "m.png" in line]
    assert "still" in mask
