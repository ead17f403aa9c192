"""A data set of what people have: each row is taken rightly, named, or refused, as it is planted.

The files are real and read by the command itself; what encodes them is replaced by means of pixels
and peaks of sound, so that the samples tell how their files were taken.
"""

import csv
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import av
import numpy as np
import pytest
from av.stream import Disposition
from einops import reduce
from helpers import boxes
from helpers.clips import RATE, flash_and_click, mux, sound_packets
from PIL import Image
from safetensors import safe_open

from justdubit_jax import cli, preprocess
from justdubit_jax.data.precomputed import TENSORS
from justdubit_jax.data.samples import survey
from justdubit_jax.preprocessing import encode

COLUMNS = ("caption", "media_path", "reference_path", "mask_path")
GOOD = dict(zip(COLUMNS, ("Words.", "good.mp4", "reference.mp4", "mask.mp4"), strict=True))
SOUND_RATE = 16_000  # of the audio VAE
TONE = 0.5 * np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)


class Planted(NamedTuple):
    """What is wrong with a row, and what is to become of it."""

    change: Callable[[Path], dict[str, str]]  # writes files into a folder; the row's cells
    refused: str = ""  # part of the reason
    note: str = ""  # part of a line that names it
    check: Callable[["Got"], bool] = lambda got: True  # of what is trained on


class Got(NamedTuple):
    latents: np.ndarray  # [3, 4, 2, 3], the mean of the pixels of each latent, 0..255
    sound: np.ndarray  # [2, n, 1], the greatest value of each hundredth of a second
    mask: np.ndarray  # [4, 2, 3]
    fps: float


def frames(grey: int = 100, count: int = 25, height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((count, height, width, 3), grey, np.uint8)


def face(count: int = 25) -> np.ndarray:
    pictures = frames(0, count)
    pictures[:, 16:48, 32:64] = 255
    return pictures


def clip(path: Path, pictures: np.ndarray | None = None, sound: Any = None, **kind: Any) -> str:
    line = np.stack([TONE, TONE]).astype(np.float32) if sound is None else sound
    return mux(path, frames() if pictures is None else pictures, line, **kind).name


def media(name: str, pictures: np.ndarray | None = None, sound: Any = None, **kind: Any):
    return lambda to: {"media_path": clip(to / name, pictures, sound, **kind)}


def reference(name: str, pictures: np.ndarray | None = None, sound: Any = None, **kind: Any):
    return lambda to: {"reference_path": clip(to / name, pictures, sound, **kind)}


def flash(name: str, **kind: Any):
    return lambda to: {"media_path": flash_and_click(to / name, size=(64, 96), **kind).name}


def turned(to: Path) -> dict[str, str]:
    """Stored upright, 64 x 96, white on its left; shown lying, white at the top."""
    pictures = frames(40, height=96, width=64)
    pictures[:, :, :32] = 200
    clip(to / "turned.mp4", pictures)
    boxes.orient(to / "turned.mp4", 0, 1, -1, 0)
    return {"media_path": "turned.mp4"}


def squeezed(to: Path) -> dict[str, str]:
    """48 x 64 pixels of 2:1; taken for square ones, its white top would be cropped."""
    pictures = frames(40, width=48)
    pictures[:, :16] = 200

    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    return media("squeezed.mkv", pictures, change=wide)(to)


def cover_first(to: Path) -> dict[str, str]:
    """A picture of the cover stands before the clip, and a comment before the sound."""
    with av.open(str(to / "cover.mkv"), "w") as out:
        packets: list[Any] = []
        for codec, grey, count in (("mjpeg", 250, 1), ("libx264", 100, 25)):
            stream: Any = out.add_stream(codec, rate=25)
            stream.height, stream.width = 64, 96
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for k, array in enumerate(frames(grey, count)):
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = k, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for level, mark in ((0.1, Disposition(0)), (0.6, Disposition.default)):
            own = sound_packets(out, "pcm_s16le", np.full((2, RATE), level, np.float32))
            own[0].stream.disposition = mark
            packets += own
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return {"media_path": "cover.mkv"}


def clock_as_rate(to: Path) -> dict[str, str]:
    """Its header says 1000 frames a second; so does its reference's."""
    path = to / "clock.mkv"
    kind = {"clock": 1000, "fps": 30, "stamp": lambda k: 1000 * k // 30, "flash": 20}
    name = flash_and_click(path, size=(64, 96), **kind).name
    mask = clip(to / "at30.mp4", face(30), fps=Fraction(30))
    return {"media_path": name, "reference_path": name, "mask_path": mask}


def cut_off(to: Path) -> dict[str, str]:
    path = to / clip(
        to / "cut_off.mkv",
        np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3)).astype(np.uint8),
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    return {"media_path": path.name}


def undecodable(to: Path) -> dict[str, str]:
    path = to / clip(to / "apac.mov", audio="pcm_s16le")
    path.write_bytes(path.read_bytes().replace(b"sowt", b"apac"))
    return {"media_path": path.name}


def still_mask(to: Path) -> dict[str, str]:
    mask = np.zeros((64, 96), np.uint8)
    mask[:32, :32] = 255
    Image.fromarray(mask).save(to / "still.png")
    return {"mask_path": "still.png"}


def same_stem(to: Path) -> dict[str, str]:
    (to / "b").mkdir()
    return {"media_path": "b/" + clip(to / "b/good.mp4", frames(180))}


def no_video(to: Path) -> dict[str, str]:
    (to / "text.mp4").write_text("not a video")
    return {"media_path": "text.mp4"}


def together(got: Got) -> bool:
    """The flash's latent is that of the click (of 8 frames; 25 or 30 a second)."""
    latent = got.latents.mean((0, 2, 3)).argmax()
    frame = got.sound.max((0, 2)).argmax() / 100 * got.fps
    return 8 * (latent - 1) < frame < 8 * latent + 1


CAPTION = 'Two lines:\none, "two";\u2028three.'
INTRA = {"g": "1", "bf": "0"}
FAULTS = {
    "turned": Planted(turned, check=lambda got: got.latents[0, :, 0].min() > 150),
    "squeezed": Planted(squeezed, check=lambda got: abs(got.latents[0, :, 0].mean() - 120) < 12),
    "tracks": Planted(
        cover_first,
        check=lambda got: got.latents.max() < 120 and abs(np.median(got.sound) - 0.6) < 0.02,
    ),
    "clock": Planted(clock_as_rate, check=lambda got: got.fps == 30 and together(got)),
    "cut between keyframes": Planted(
        flash(
            "between.ts",
            keep=lambda k: k >= 12,
            frames=70,
            flash=42,
            options={"bf": "0", "g": "25", "keyint_min": "25", "sc_threshold": "0"},
        ),
        check=together,
    ),
    "hole": Planted(
        flash("hole.mp4", keep=lambda k: not 1 <= k <= 4, options=INTRA, flash=20),
        note="resampled from a variable frame rate to 25 fps",
        check=together,
    ),
    "still mask": Planted(
        still_mask, check=lambda got: got.mask.tolist() == 4 * [[[1, 0, 0], [0, 0, 0]]]
    ),
    "other mask": Planted(
        lambda to: {"mask_path": clip(to / "tall.mp4", frames(255, width=64))},
        note="its aspect is 1.000",
    ),
    "empty mask": Planted(lambda to: {"mask_path": clip(to / "empty.mp4", frames(0))}, note="mask"),
    "crop": Planted(media("crop.mp4", frames(height=96)), note="33 % of its height is cut off"),
    "surround": Planted(
        media(
            "surround.mkv",
            sound=np.stack([1.8 * TONE] * 6).astype(np.float32),
            audio="ac3",
            layout="5.1",
        ),
        check=lambda got: 0.5 < got.sound.max() <= 1,
    ),
    "silent": Planted(media("silent.mkv", sound=np.zeros((2, RATE), np.float32)), note="silent"),
    "short sound": Planted(
        media(
            "short_sound.mov",
            sound=np.stack([TONE] * 2)[:, : RATE // 2].astype(np.float32),
            audio="pcm_s16le",
        ),
        note="its sound ends at 0.50 s of 1.00 s",
    ),
    "same stem": Planted(same_stem, check=lambda got: abs(got.latents.mean() - 180) < 5),
    "dots": Planted(media("a.b.good.mp4", frames(60)), check=lambda got: got.latents.mean() < 70),
    "caption": Planted(lambda to: {"caption": CAPTION} | media("caption.mp4")(to)),
    "other rate": Planted(
        reference("slow.mp4", frames(count=40), fps=Fraction(24)), "24 frames per second"
    ),
    "short": Planted(media("short.mp4", frames(count=9)), "9 frames"),
    "no video": Planted(no_video, "text.mp4"),
    "cut off": Planted(cut_off, "cut_off.mkv"),
    "no decoder": Planted(undecodable, "its sound is in a codec that has no decoder"),
    "mute reference": Planted(
        lambda to: {"reference_path": mux(to / "mute.mp4", frames()).name}, "no audio stream"
    ),
    "long": Planted(lambda to: {"caption": "a b c " * 500}, "has 3000 tokens"),
    "no words": Planted(lambda to: {"caption": " "}, "no text in column 'caption'"),
    "no mask": Planted(lambda to: {"mask_path": "missing.mp4"}, "missing.mp4"),
    "more cells": Planted(lambda to: {"more": "cell"}, "cell"),
}


def means(clips: Any) -> list[np.ndarray]:
    def of(pictures: np.ndarray) -> np.ndarray:
        cells = reduce(
            pictures.astype(np.float32), "f (y p) (x q) c -> c f y x", "mean", p=32, q=32
        )
        rest = reduce(cells[:, 1:], "c (f k) y x -> c f y x", "max", k=8)
        return np.concatenate([cells[:, :1], rest], 1)

    return [of(np.asarray(pictures)) for pictures in clips]


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """Encoders that need no weights; the prompts that were encoded."""
    seen: list[str] = []

    def contexts(texts):
        seen.extend(texts)
        return [(np.ones((4, 8), np.float32),) * 2 for _ in texts]

    def peaks(sound):
        step = SOUND_RATE // 100
        whole = np.asarray(sound)[:, : sound.shape[-1] // step * step]
        return reduce(whole, "c (t k) -> c t 1", "max", k=step)

    monkeypatch.setattr(encode, "video_encoder", lambda *_: means)
    monkeypatch.setattr(encode, "audio_encoder", lambda _: peaks)
    monkeypatch.setattr(preprocess, "text_encoder", lambda *_: contexts)
    return seen


def read(root: Path, role: str, name: str) -> tuple[np.ndarray, dict[str, str]]:
    with safe_open(root / role / f"{name}.safetensors", framework="numpy") as file:
        return file.get_tensor(TENSORS[role][0]), file.metadata()


def plant(folder: Path) -> dict[str, dict[str, str]]:
    """Every row by its name, a good one first; each has a clip of its own."""
    clip(folder / "good.mp4")
    clip(folder / "reference.mp4", frames(140))
    clip(folder / "mask.mp4", face())
    rows = {"good": GOOD}
    for name, fault in FAULTS.items():
        row = GOOD | fault.change(folder)
        if row["media_path"] == GOOD["media_path"]:
            row["media_path"] = clip(folder / f"{name}.mp4")
        rows[name] = row
    return rows


def sample_of(row: dict[str, str]) -> str:
    return Path(row["media_path"]).with_suffix("").as_posix()


def is_as_planted(name: str, row: dict[str, str], printed: list[str], root: Path) -> bool:
    fault = FAULTS[name]
    words = {Path(cell).name for cell in row.values()} - set(GOOD.values())
    words.add(f", {Path(sample_of(row)).name}: ")
    own = [line for line in printed if name == "more cells" or any(w in line for w in words)]
    failed = [line for line in own if line.startswith("failed: ")]
    if fault.refused:
        return any(fault.refused in line for line in failed)
    noted = [line for line in own if line.startswith("note: ") and fault.note in line]
    return not failed and bool(noted) == bool(fault.note) and fault.check(got(root, row))


def test_each_is_taken_rightly_named_or_refused(demo, tmp_path, prompts, capsys):
    rows, root = plant(tmp_path), tmp_path / ".precomputed"
    run(demo, tmp_path, [GOOD, GOOD | {"media_path": clip(tmp_path / "removed.mp4")}])
    with pytest.raises(SystemExit) as ended:
        run(demo, tmp_path, list(rows.values()))
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "no longer in the data set, so not trained on: 1 (removed)" in printed
    trained = {sample.name for sample in survey(root, {role: role for role in TENSORS}).samples}
    kept = [name for name in rows if name == "good" or not FAULTS[name].refused]
    assert trained == {sample_of(rows[name]) for name in kept}
    assert f"{len(kept)} of {len(rows)} samples" in printed
    assert CAPTION in prompts
    lines = printed.splitlines()
    assert [n for n in FAULTS if not is_as_planted(n, rows[n], lines, root)] == []


def got(root: Path, row: dict[str, str]) -> Got:
    name = sample_of(row)
    latents, metadata = read(root, "latents", name)
    return Got(
        latents=latents,
        sound=read(root, "audio_latents", name)[0],
        mask=read(root, "masks", name)[0],
        fps=float(metadata["fps"]),
    )


def run(demo: Path, folder: Path, rows: list[dict[str, str]]) -> None:
    """The command as it ends: quietly, or with its exit code."""
    with (folder / "data.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        out.writerows([row[key] for key in (*COLUMNS, *row.keys() - COLUMNS)] for row in rows)
    argv = [
        *(str(folder / "data.csv"), "--resolution-buckets", "96x64x25", "--with-audio"),
        *("--model-path", str(demo / "assets/ltx-2-tiny.safetensors")),
        *("--text-encoder-path", str(demo / "assets/gemma")),
        *("--reference-column", "reference_path", "--mask-column", "mask_path"),
    ]
    with mock.patch.object(sys, "argv", ["preprocess", *argv]):
        cli.exiting(preprocess._command)
