"""Event files are read back record by record; Weights & Biases is a stand-in."""

import io
import struct
import sys
import types
import wave

import numpy as np
import pytest
from helpers.made_up import clip, record
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from justdubit_jax.errors import InputError
from justdubit_jax.runs.logs import EventLog, Log, WandbLog

RATE = 16_000


def masked(data: bytes) -> int:
    """TFRecord's checksum: crc32c, rotated and shifted by a constant."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(folder) -> list[Event]:
    """Every event of every file, none of them cut off."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            data, content = content[12 : 12 + length], content[16 + length :]
            assert len(data) == length
            events.append(Event.FromString(data))
    return events


def summaries(folder) -> list[tuple[int, str, object]]:
    return [(e.step, v.tag, v) for e in read_events(folder) for v in e.summary.value]


def test_checksums_are_tensorflows(tmp_path):
    log = EventLog(tmp_path, 0)
    log.scalars(1, {"loss": 1.0})
    log.close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert struct.unpack_from("<I", content, 8)[0] == masked(content[:8])
    assert struct.unpack_from("<I", content, 12 + length)[0] == masked(content[12 : 12 + length])


def test_event_log_holds_numbers_pictures_sound_and_text(tmp_path):
    log = EventLog(tmp_path / "events", 0)
    assert isinstance(log, Log)
    values = record(7)
    log.scalars(values.pop("step"), values)
    log.images(7, "sample_1/dubbed", clip(20, 32, 64))
    sound = 0.5 * np.sin(np.arange(2 * RATE).reshape(2, RATE) / 20)
    log.audio(7, "sample_1/sound", sound, RATE)
    log.video(7, "sample_1/video", tmp_path / "unused.mp4")
    log.text(0, "config", "    seed = 1")
    log.close()

    found = {tag: (step, value) for step, tag, value in summaries(tmp_path / "events")}
    losses = {"loss", "loss_video", "loss_audio", "grad_norm", "seconds", "tflops", "mfu"}
    rates = {"learning_rate/default", "learning_rate/.*audio.*"}
    samples = {"sample_1/dubbed", "sample_1/sound", "config/text_summary"}
    assert set(found) == losses | rates | samples
    assert found["learning_rate/.*audio.*"][0] == 7
    assert found["loss_audio"][1].simple_value == pytest.approx(1.1)
    image = found["sample_1/dubbed"][1].image
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        assert picture.size == (image.width, image.height) == (8 * 320 + 7 * 4, 160)
    audio = found["sample_1/sound"][1].audio
    assert (audio.sample_rate, audio.num_channels, audio.length_frames) == (RATE, 2, RATE)
    with wave.open(io.BytesIO(audio.encoded_audio_string)) as file:
        got = np.frombuffer(file.readframes(RATE), "<i2").reshape(RATE, 2).T / 32767
    assert np.abs(got - sound).max() < 1 / 32767  # 16 bits
    assert found["config/text_summary"][1].tensor.string_val == [b"    seed = 1"]


def test_what_is_logged_is_on_disk_at_once(tmp_path):
    log = EventLog(tmp_path, 0)
    log.scalars(1, {"loss": 1.0})
    assert [step for step, _, _ in summaries(tmp_path)] == [1]  # a kill now would not lose it
    log.close()


def write_steps(folder, resume_step: int, last: int, value: float) -> None:
    log = EventLog(folder, resume_step)
    for step in range(resume_step + 1, last + 1):
        log.scalars(step, {"loss": value})
    log.close()


def test_a_continued_run_has_each_step_once(tmp_path):
    write_steps(tmp_path, 0, 6, 1.0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote step 6
    write_steps(tmp_path, 3, 5, 2.0)
    write_steps(tmp_path, 4, 8, 3.0)

    losses = [(step, value.simple_value) for step, _, value in summaries(tmp_path)]
    assert losses == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3), (7, 3), (8, 3)]
    starts = [e.step for e in read_events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [4, 5]  # a TensorBoard that has read the older file forgets these steps

    write_steps(tmp_path, 0, 1, 4.0)  # no checkpoint to continue from
    assert [step for step, _, _ in summaries(tmp_path)] == [1]


WANDB = {
    "project": "dub",
    "entity": None,
    "tags": ["a"],
    "log_validation_videos": True,
    "config": {"seed": 1},
    "name": "run",
}


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="expected the extra `wandb`") as error:
        WandbLog(tmp_path, **WANDB)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("videos", [True, False])
def test_wandb_gets_what_the_event_file_gets(tmp_path, monkeypatch, videos):
    entries, started = [], {}
    run = types.SimpleNamespace(
        log=entries.append, define_metric=lambda *_, **__: None, finish=lambda: None
    )

    class Media:
        def __init__(self, data, format=None):
            self.data = data

    def init(**arguments):
        started.update(arguments)
        return run

    fake = types.SimpleNamespace(
        init=init, Error=RuntimeError, Image=Media, Audio=Media, Video=Media, Html=Media
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = WandbLog(tmp_path, **{**WANDB, "log_validation_videos": videos})
    assert isinstance(log, Log)
    assert started["project"] == "dub" and started["tags"] == ["a"]
    assert started["config"] == {"seed": 1} and started["name"] == "run"

    log.scalars(3, {"loss": 1, "learning_rate": {"default": 0.5}})
    log.images(3, "dubbed", clip(3, 32, 32))
    log.audio(3, "sound", np.zeros((1, 100)), RATE)
    log.video(3, "video", tmp_path / "a.mp4")
    log.text(3, "config", "a < b")
    log.close()
    assert entries[0] == {"step": 3, "loss": 1.0, "learning_rate/default": 0.5}
    assert all(entry["step"] == 3 for entry in entries)
    tags = [tag for entry in entries[1:] for tag in entry if tag != "step"]
    assert tags == ["dubbed", "sound", *(["video"] if videos else []), "config"]
    assert entries[-1]["config"].data == "<pre>a &lt; b</pre>"


def test_wandb_refusal_is_one_line(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    def init(**_):
        raise Refused("no key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Refused))
    with pytest.raises(InputError, match=r"^config: wandb: no key configured$"):
        WandbLog(tmp_path, **WANDB)
