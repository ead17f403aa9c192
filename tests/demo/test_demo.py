import json
import re

import numpy as np
from helpers.commands import run_module
from safetensors.numpy import load_file

from justdubit_jax.clips.read import probe
from justdubit_jax.data.precomputed import TENSORS
from justdubit_jax.demo import __main__ as demo


def test_it_leaves_what_it_says(demo):
    assert (demo / "assets/ltx-2-tiny.safetensors").is_file()
    assert (demo / "assets/gemma/config.json").is_file()
    rows = json.loads((demo / "dataset/dataset.json").read_text())
    counts = {
        r: len(list((demo / "dataset/.precomputed" / r).rglob("*.safetensors"))) for r in TENSORS
    }
    assert counts == dict.fromkeys(TENSORS, len(rows))
    assert probe(demo / "dataset" / rows[0]["media_path"]).has_audio
    assert (demo / "run/state/60").is_dir()
    assert len((demo / "run/metrics.jsonl").read_text().splitlines()) == 60
    steps = sorted(p.name for p in (demo / "run/checkpoints").iterdir())
    assert steps == [f"lora_weights_step_{n:05d}.safetensors" for n in (20, 40, 60)]


def test_the_loss_fell(demo):
    printed = (demo / "printed.txt").read_text()
    before, after = map(
        float, re.search(r"loss +([\d.]+) before, ([\d.]+) after", printed).groups()
    )
    assert after < 0.95 * before


def test_the_lora_is_trained_and_complete(demo):
    lora = load_file(demo / "run/checkpoints/lora_weights_step_00060.safetensors")
    assert len(lora) == 2 * 28 * 3  # A and B of 28 modules in 3 blocks
    assert all(np.isfinite(t.astype(np.float32)).all() for t in lora.values())
    assert all(t.astype(np.float32).any() for k, t in lora.items() if "lora_B" in k)


def test_metrics_are_json_lines_with_every_number(demo):
    lines = (demo / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == list(range(1, 61))
    last = records[-1]
    assert last["loss"] == np.float32(np.float32(last["loss_video"]) + last["loss_audio"])
    assert last["learning_rate"]["audio_attn"] < last["learning_rate"]["default"]


def test_starting_anew_removes_only_what_it_made(tmp_path):
    made = ["assets/gemma/config.json", "dataset/clips/000_media.mp4", "run/state/20/x/y"]
    made += ["dataset/.precomputed/latents/clips/000_media.safetensors", "run/metrics.jsonl"]
    own = ["notes.txt", "dataset/clips/mine.mp4", "run/checkpoints/best.safetensors"]
    for name in made + own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    demo.remove_made(tmp_path)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == sorted(own)
    assert not (tmp_path / "assets").exists()


def test_an_unknown_flag_is_one_line(tmp_path):
    done = run_module("justdubit_jax.demo", "--workdr", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--workdr" in done.stderr
