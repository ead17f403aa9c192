"""Preprocessing of real mp4 files, and of everything that can be wrong with them."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from justdubit_jax import preprocess
from justdubit_jax.clips.read import read_video
from justdubit_jax.clips.write import write_video
from justdubit_jax.data.precomputed import TENSORS
from justdubit_jax.data.rows import Columns, read_rows
from justdubit_jax.errors import InputError
from justdubit_jax.preprocessing.encode import prepare_caption


def read(path: Path):
    with safe_open(path, framework="numpy") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def test_files_of_a_sample(demo):
    root = demo / "dataset/.precomputed"
    shapes = {
        "latents": {"latents": (16, 4, 2, 3)},
        "reference_latents": {"latents": (16, 4, 2, 3)},
        # 25 frames at 25 fps: 1 s, 101 mel frames, 26 latents of the causal encoder.
        "audio_latents": {"latents": (8, 26, 16)},
        "reference_audio_latents": {"latents": (8, 26, 16)},
        "conditions": {"video_context": (1024, 64), "audio_context": (1024, 64)},
        "masks": {"masks": (4, 2, 3)},
    }
    for role, want in shapes.items():
        tensors, metadata = read(root / role / "clips/000_media.safetensors")
        assert {name: tensor.shape for name, tensor in tensors.items()} == want
        assert metadata == {
            "num_frames": "4",
            "height": "2",
            "width": "3",
            "fps": "25.0",
            "duration": "1.0",
        }
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    mask, _ = read(root / "masks/clips/000_media.safetensors")
    assert 0 < mask["masks"].max() <= 1 and mask["masks"].min() >= 0


def test_target_and_reference_differ(demo):
    root = demo / "dataset/.precomputed"
    for own, reference in (
        ("latents", "reference_latents"),
        ("audio_latents", "reference_audio_latents"),
    ):
        a, b = (read(root / r / "clips/001_media.safetensors")[0] for r in (own, reference))
        assert np.abs(a["latents"] - b["latents"]).max() > 0.01


def arguments(demo, dataset: Path, *more: str):
    return preprocess.parse_arguments(
        [
            *(str(dataset), "--resolution-buckets", "96x64x25;64x64x9"),
            *("--model-path", str(demo / "assets/ltx-2-tiny.safetensors")),
            *("--text-encoder-path", str(demo / "assets/gemma"), "--with-audio"),
            *("--reference-column", "reference_path", "--mask-column", "mask_path", *more),
        ]
    )


def frames(count: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, *size, 3)).astype(np.uint8)


def sound(seconds: float) -> np.ndarray:
    return np.sin(np.linspace(0, 900, int(48000 * seconds)))[None].repeat(2, 0).astype(np.float32)


@pytest.fixture
def broken(demo, tmp_path) -> tuple[Path, dict[str, str]]:
    """A data set of one good row and one of each failure; name -> part of the reason."""
    clips = tmp_path / "clips"
    shutil.copytree(demo / "dataset/clips", clips)
    good = {
        "caption": "This video shows a face.",
        "media_path": "clips/000_media.mp4",
        "reference_path": "clips/000_reference.mp4",
        "mask_path": "clips/000_mask.mp4",
    }
    rows, reasons = [good], {}

    def bad(name: str, reason: str, **change: str):
        shutil.copy(clips / "001_media.mp4", clips / f"{name}.mp4")
        rows.append(good | {"media_path": f"clips/{name}.mp4"} | change)
        reasons[f"clips/{name}"] = reason

    write_video(clips / "slow.mp4", frames(30), Fraction(24), sound(1.25))
    write_video(clips / "short.mp4", frames(5), 25, sound(0.2))
    write_video(clips / "few.mp4", frames(9), 25, sound(0.4))
    write_video(clips / "mute.mp4", frames(25), 25)
    (clips / "text.mp4").write_text("not a video")
    bad("other_rate", "24 frames per second", reference_path="clips/slow.mp4")
    bad("short_reference", "9 frames", reference_path="clips/few.mp4")
    bad("mute_reference", "no audio stream", reference_path="clips/mute.mp4")
    bad("no_mask", "missing.mp4", mask_path="clips/missing.mp4")
    bad("slow_mask", "24 frames per second", mask_path="clips/slow.mp4")
    for name, reason in (("short", "5 frames"), ("mute", "no audio stream"), ("text", "decoded")):
        rows.append(good | {"media_path": f"clips/{name}.mp4"})
        reasons[f"clips/{name}"] = reason
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json", reasons


def test_failures_are_named_and_the_others_finished(demo, broken, capsys):
    dataset, reasons = broken
    stale = dataset.parent / ".precomputed/latents/clips/short.safetensors"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert preprocess.main(arguments(demo, dataset, "--decode")) == len(reasons)
    printed = capsys.readouterr().err
    for name, reason in reasons.items():
        lines = [
            line for line in printed.splitlines() if line.startswith("failed:") and reason in line
        ]
        assert lines, (name, reason, printed)
    root = dataset.parent / ".precomputed"
    for role in TENSORS:
        files = [
            p.relative_to(root / role).as_posix() for p in (root / role).rglob("*") if p.is_file()
        ]
        assert files == ["clips/000_media.safetensors"], role
    clip = read_video(root / "decoded_videos/clips/000_media.mp4")
    assert clip.frames.shape == (25, 64, 96, 3) and clip.fps == 25
    assert read_video(root / "decoded_masks/clips/000_media.mp4").frames.max() > 100
    assert (root / "decoded_audio/clips/000_media.wav").stat().st_size > 40_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.json", json.dumps([{"caption": "x", "media_path": "a.mp4"}])),
        ("d.jsonl", '{"caption": "x", "media_path": "a.mp4"}\n\n'),
        ("d.csv", "caption,media_path\nx,a.mp4\n"),
    ],
)
def test_formats(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (row,) = read_rows(tmp_path / name, Columns("caption", "media_path", None, None))
    assert (row.name, row.caption, row.clip) == ("a", "x", tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"caption": "x", "media_path": "a.mp4"}] * 2, "same files"),
        ([{"caption": "x", "media_path": f"a.{s}"} for s in ("mp4", "mov")], "same files"),
        ([{"caption": " ", "media_path": "a.mp4"}], "row 1: no text in column 'caption'"),
        ([{"caption": "x"}], "row 1: no text in column 'media_path'"),
        ([{"caption": "x", "media_path": "../a.mp4"}], "not below the data set's folder"),
        ([], "no rows"),
        ({"caption": "x"}, "expected a list"),
    ],
)
def test_data_sets_that_are_wrong(tmp_path, rows, message):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message):
        read_rows(path, Columns("caption", "media_path", None, None))


def test_captions(demo):
    dataset = demo / "dataset/dataset.json"
    args = arguments(demo, dataset, "--lora-trigger", " DUB ", "--remove-llm-prefixes")
    assert prepare_caption("The video shows a face. ", args) == "DUB a face."
    plain = arguments(demo, dataset)
    assert prepare_caption("The video shows a face.", plain) == "The video shows a face."


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--resolution-buckets", "100x64x25", "100"),
        ("--device", "tpu", "expected cpu"),
        ("--model-path", "nowhere.safetensors", "no such file"),
        ("--text-encoder-path", "nowhere", "not a Gemma 3 folder"),
    ],
)
def test_flags_that_are_wrong(demo, tmp_path, flag, value, message):
    shutil.copytree(demo / "dataset/clips", tmp_path / "clips")
    shutil.copy(demo / "dataset/dataset.json", tmp_path)
    args = arguments(demo, tmp_path / "dataset.json", flag, value)
    with pytest.raises(InputError, match=message):
        preprocess.main(args)
