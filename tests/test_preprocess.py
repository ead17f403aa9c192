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
from justdubit_jax.data.index import listed
from justdubit_jax.data.precomputed import TENSORS
from justdubit_jax.data.samples import survey
from justdubit_jax.data.walk import files_below
from justdubit_jax.errors import InputError
from justdubit_jax.preprocessing import encode
from justdubit_jax.preprocessing.encode import prepare_caption

LONG = "a b c " * 500


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
        source = json.loads(metadata.pop("source"))
        assert (source["stored"], source["rate"], source["colour"]) == ("96x64", "25/1", "BT.709")
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
    bad("long", "has 3000 tokens, the text encoder takes 1024: its last 65.9%", caption=LONG)
    # What no file is known to do, but some file will.
    bad("raises", "ValueError: of a library, while it is read")
    bad("not_encoded", "RuntimeError: while it is encoded")
    bad("not_finite", "latents has values that are not finite")
    bad("not_written", "OSError: while it is written")
    bad("not_said", "RuntimeError: the caption", caption="unspeakable")
    for name, reason in (("short", "5 frames"), ("mute", "no audio stream"), ("text", "decoded")):
        rows.append(good | {"media_path": f"clips/{name}.mp4"})
        reasons[f"clips/{name}"] = reason
    rows.append(good | {"media_path": "clips/no caption.mp4", "caption": " "})
    reasons[f"row {len(rows)}"] = "no text in column 'caption'"
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json", reasons


@pytest.fixture
def faults(monkeypatch):
    """The rows raises, not_encoded, not_finite, not_written and not_said do as they are named."""
    load, video, save = encode.load_row, encode.video_encoder, encode.save
    text = preprocess.text_encoder
    marked = {}

    def load_row(row, *rest):
        if row.name.endswith("raises"):
            raise ValueError("of a library,\nwhile it is read")
        item = load(row, *rest)
        marked[id(item.frames)] = row.name, item.frames  # kept, so that the id stays its own
        return item

    def video_encoder(*args):
        inner = video(*args)

        def run(clips):
            names = [marked.get(id(clip), ("", None))[0] for clip in clips]
            if any(name.endswith("not_encoded") for name in names):
                raise RuntimeError("while it is encoded")
            made = inner(clips)
            pairs = zip(names, made, strict=True)
            return [x * np.nan if name.endswith("not_finite") else x for name, x in pairs]

        return run

    def save_file(output, role, name, *rest):
        if name.endswith("not_written") and role == "audio_latents":
            raise OSError("while it is written")
        return save(output, role, name, *rest)

    def text_encoder(*args):
        inner = text(*args)

        def run(prompts):
            if any("unspeakable" in prompt for prompt in prompts):
                raise RuntimeError("the caption")
            return inner(prompts)

        return run

    monkeypatch.setattr(encode, "load_row", load_row)
    monkeypatch.setattr(encode, "video_encoder", video_encoder)
    monkeypatch.setattr(encode, "save", save_file)
    monkeypatch.setattr(preprocess, "text_encoder", text_encoder)


def test_failures_are_named_and_the_others_finished(demo, broken, faults, capsys):
    dataset, reasons = broken
    root = dataset.parent / ".precomputed"
    stale = root / "latents/clips/short.safetensors"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert preprocess.main(arguments(demo, dataset, "--decode")) == len(reasons)
    printed = capsys.readouterr().err
    for name, reason in reasons.items():
        (line,) = [line for line in printed.splitlines() if reason in line and f"{name}: " in line]
        assert line.startswith("failed: ")
    assert "how the files were taken" in printed and "video 1 of 1, h264; audio" in printed
    for role in TENSORS:
        assert files_below(root / role).names == {"clips/000_media"}, role
    assert listed(root).keys() == {"clips/000_media"}
    clip = read_video(root / "decoded_videos/clips/000_media.mp4")
    assert clip.frames.shape == (25, 64, 96, 3) and clip.fps == 25
    assert read_video(root / "decoded_masks/clips/000_media.mp4").frames.max() > 100
    assert (root / "decoded_audio/clips/000_media.wav").stat().st_size > 40_000


def test_the_list_is_the_shapes_of_the_files(demo):
    root = demo / "dataset/.precomputed"
    files = listed(root)
    assert files.keys() == files_below(root / "latents").names
    for name, shapes in files.items():
        for role in TENSORS:
            tensors, _ = read(root / role / f"{name}.safetensors")
            assert shapes[role] == {key: x.shape for key, x in tensors.items()}


def test_rows_that_left_the_table_are_told_and_not_trained_on(demo, dataset_copy, capsys):
    """As report 03 has it."""
    rows = json.loads(dataset_copy.read_text())
    dataset_copy.write_text(json.dumps(rows[1:2]))
    assert preprocess.main(arguments(demo, dataset_copy)) == 0
    printed = capsys.readouterr().err
    gone = "clips/000_media, clips/002_media, clips/003_media"
    assert f"no longer in the data set, so not trained on: 3 ({gone})" in printed
    root = dataset_copy.parent / ".precomputed"
    found = survey(root, {role: role for role in TENSORS})
    assert [sample.name for sample in found.samples] == ["clips/001_media"]
    assert found.left_out == gone.split(", ")


@pytest.fixture
def dataset_copy(demo, tmp_path) -> Path:
    """The demo's data set, with what is preprocessed of it."""
    shutil.copytree(demo / "dataset", tmp_path / "dataset")
    return tmp_path / "dataset/dataset.json"


@pytest.mark.parametrize(
    "flags",
    [
        ("--caption-column", "prompt", "--video-column", "video"),
        ("--column", "caption=prompt", "--column", "video=Video"),
    ],
)
def test_columns_of_other_names(demo, tmp_path, flags):
    path = tmp_path / "d.csv"
    path.write_text("prompt;video;reference_path;mask_path\nwords;a.mp4;b.mp4;c.mp4\n")
    (row,) = preprocess.read_columns(arguments(demo, path, *flags)).rows
    assert (row.caption, row.clip, row.reference) == (
        "words",
        tmp_path / "a.mp4",
        tmp_path / "b.mp4",
    )
    with pytest.raises(
        InputError, match=r"no column 'caption'; it has 'prompt', 'video', .* --column c"
    ):
        preprocess.read_columns(arguments(demo, path))


@pytest.mark.parametrize("text", ["prompt", "words=prompt", "caption="])
def test_a_column_of_no_role_is_refused(demo, text):
    with pytest.raises(InputError, match="ROLE=NAME with one of caption, video, reference, mask"):
        arguments(demo, Path("d.json"), "--column", text)


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
        ("--frame-rate", "0", "frame rate 0: expected a number above 0"),
        ("--model-path", "nowhere.safetensors", "no such file"),
        ("--text-encoder-path", "nowhere", "not a Gemma 3 folder"),
    ],
)
def test_flags_that_are_wrong(demo, tmp_path, flag, value, message):
    shutil.copytree(demo / "dataset/clips", tmp_path / "clips")
    shutil.copy(demo / "dataset/dataset.json", tmp_path)
    with pytest.raises(InputError, match=message):
        preprocess.main(arguments(demo, tmp_path / "dataset.json", flag, value))


def test_a_strict_rate_and_a_given_one_exclude_each_other(demo):
    with pytest.raises(InputError, match="--strict-rate refuses what --frame-rate resamples"):
        arguments(demo, demo / "dataset/dataset.json", "--strict-rate", "--frame-rate", "25")
