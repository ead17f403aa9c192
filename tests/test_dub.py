"""The dub command's bad inputs: one line each, before anything is sampled."""

import re
from fractions import Fraction

import numpy as np
import pytest
from helpers.commands import run_module
from safetensors.numpy import load_file, save_file

from justdubit_jax import dub
from justdubit_jax.clips.read import read_video
from justdubit_jax.clips.write import write_video
from justdubit_jax.dubbing.sample import Sampler
from justdubit_jax.errors import InputError
from justdubit_jax.sampling.guidance import Guidance, Prediction

PLAIN, NEGATIVE, *_ = Prediction


def arguments(demo, tmp_path, **change):
    values = {
        "video": demo / "dataset/clips/000_reference.mp4",
        "prompt": "A face says: hello.",
        "lora": demo / "run/checkpoints/lora_weights_step_00060.safetensors",
        "model-path": demo / "assets/ltx-2-tiny.safetensors",
        "text-encoder-path": demo / "assets/gemma",
        "out": tmp_path / "out.mp4",
        "steps": 1,
    } | {key.replace("_", "-"): value for key, value in change.items()}
    return [str(part) for key, value in values.items() for part in (f"--{key}", value)]


def clip(tmp_path, count=25, sound=True):
    frames = np.random.default_rng(0).integers(0, 255, (count, 64, 96, 3)).astype(np.uint8)
    voice = np.zeros((2, 48000), np.float32) if sound else None
    write_video(tmp_path / "clip.mp4", frames, 25, voice)
    return tmp_path / "clip.mp4"


def lora(demo, tmp_path, change):
    tensors = load_file(arguments(demo, tmp_path)[5])
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def text(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    return tmp_path / "text.mp4"


def keep_one_block(tensors):
    for key in [k for k in tensors if ".1." in k]:
        del tensors[key]


def halve_a_rank(tensors):
    key = next(k for k in tensors if "lora_A" in k)
    tensors[key] = tensors[key][:4]


def spoil(tensors):
    next(iter(tensors.values())).fill(np.nan)


def make_wider(tensors):
    """As for a base model of other widths."""
    for key, tensor in tensors.items():
        if "lora_A" in key:
            tensors[key] = np.concatenate([tensor, tensor], 1)


def rename(tensors):
    for key in list(tensors):
        tensors[key.replace("to_", "no_").replace("net", "nit")] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: {"video": clip(t, sound=False)}, "no audio stream"),
        (lambda d, t: {"video": text(t)}, "cannot be decoded"),
        (lambda d, t: {"video": t / "nowhere.mp4"}, "No such file"),
        (lambda d, t: {"video": clip(t, 8)}, "8 frames"),
        (lambda d, t: {"width": 100}, "100 is not a multiple of 32"),
        (lambda d, t: {"lora": lora(d, t, rename)}, "matches no module"),
        (lambda d, t: {"lora": lora(d, t, keep_one_block)}, "missing"),
        (lambda d, t: {"lora": lora(d, t, halve_a_rank)}, "ranks 4, 8"),
        (
            lambda d, t: {"lora": lora(d, t, lambda x: next(iter(x.values())).fill(np.nan))},
            "finite",
        ),
        (lambda d, t: {"lora": d / "assets/ltx-2-tiny.safetensors"}, "expected a LoRA"),
        (lambda d, t: {"prompt": "  "}, "--prompt is empty"),
        (lambda d, t: {"out": t / "out.avi"}, "ends with .mp4"),
        (lambda d, t: {"out": "/proc/out.mp4"}, "the folder is not writable"),
        (lambda d, t: {"lora_strength": "inf"}, "--lora-strength inf: expected -100 to 100"),
        (lambda d, t: {"seed": 10**30}, "--seed 1000"),
        (lambda d, t: {"steps": 0}, "--steps 0: expected at least 1"),
        (lambda d, t: {"guidance_scale": "nan"}, "--guidance-scale nan"),
        (lambda d, t: {"audio_cfg_guidance_scale": 0.5}, "--audio-cfg-guidance-scale 0.5"),
        (lambda d, t: {"v2a_guidance_scale": -1}, "--v2a-guidance-scale -1"),
        (lambda d, t: {"audio_rescale_scale": 2}, "--audio-rescale-scale 2.0: expected 0 to 1"),
        (lambda d, t: {"stg_scale": 1, "stg_blocks": 3}, "stg_blocks: got 3, expected 0 to 2"),
    ],
)
def test_bad_input_is_refused_before_sampling(demo, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(Sampler, "sample", None)
    with pytest.raises(InputError, match=re.escape(message)):
        dub.main(dub.parse_arguments(arguments(demo, tmp_path, **change(demo, tmp_path))))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"'\S+\.no_\w+' matches no module of the model"),
        (keep_one_block, r"\d+ missing and 0 unexpected tensors \(diffusion_model.*\.1\..*\)"),
        (make_wider, r"diffusion_model.* is .*: made for another base model"),
    ],
)
def test_a_lora_that_does_not_fit_is_named(demo, tmp_path, change, message):
    """There is no training here, and no config: the file is what a person can look at."""
    path = lora(demo, tmp_path, change)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: {message}") as raised:
        dub.main(dub.parse_arguments(arguments(demo, tmp_path, lora=path)))
    assert not re.search(r"\brun\b|config|target|lora\.", str(raised.value)[len(str(path)) :])


def test_guidance_flags(demo, tmp_path):
    def settings(**change):
        args = dub.parse_arguments(arguments(demo, tmp_path, **change))
        return dub.sampling_settings(args, "own")

    plain = settings()
    assert plain.passes == (PLAIN, NEGATIVE) and plain.video == plain.audio == Guidance(cfg=3.0)
    assert settings(guidance_scale=1).passes == (PLAIN,)
    alike = settings(guidance_scale=2, video_rescale_scale=0.5)
    assert alike.video == alike.audio == Guidance(cfg=2.0, rescale=0.5)
    change = {"audio_cfg_guidance_scale": 7, "a2v_guidance_scale": 3, "v2a_guidance_scale": 2}
    change |= {"video_rescale_scale": 0.7, "audio_rescale_scale": 0, "stg_scale": 1}
    change |= {"stg_blocks": 1, "stg_mode": "stg_v"}
    every = settings(**change)
    assert every.video == Guidance(3.0, 1.0, 3.0, 0.7, (1,))
    assert every.audio == Guidance(7.0, 1.0, 2.0, 0.0, ())
    assert every.passes == tuple(Prediction)


def test_the_rule_of_modulation_is_the_lora_files_unless_it_is_given(demo, tmp_path):
    def rule(**change):
        args = dub.parse_arguments(arguments(demo, tmp_path, **change))
        return dub.sampling_settings(args, "other_gate")

    path, tensors = tmp_path / "other.safetensors", {"a": np.zeros(1)}
    save_file(tensors, path, {"cross_timestep": "other"})
    assert rule().cross_timestep == "own"
    assert rule(lora=path).cross_timestep == "other"
    save_file(tensors, tmp_path / "bare.safetensors", {})
    assert rule(lora=tmp_path / "bare.safetensors").cross_timestep == "other_gate"
    assert rule(lora=path, cross_timestep="own").cross_timestep == "own"
    assert rule(cross_timestep="other").cross_timestep == "other"


def test_an_unwritable_folder_is_one_line(demo, tmp_path):
    (tmp_path / "file").touch()
    done = run_module("justdubit_jax.dub", *arguments(demo, tmp_path, out=tmp_path / "file/x.mp4"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_any_clip_is_brought_into_shape(demo, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 255, (40, 70, 101, 3)).astype(np.uint8)
    frames = np.repeat(np.repeat(frames[:, :35, :50], 2, 1), 2, 2)
    sound = np.random.default_rng(1).normal(0, 0.1, (2, 48000 * 40 // 30)).astype(np.float32)
    write_video(tmp_path / "odd.mp4", frames, 30, sound)
    change = {"video": tmp_path / "odd.mp4", "frame_rate": "23.976", "lora_strength": 0.5}
    change |= {"steps": 6, "a2v_guidance_scale": 2, "guidance_scale": 1, "batch_guidance": "no"}
    dub.main(dub.parse_arguments(arguments(demo, tmp_path, **change)))
    notes = capsys.readouterr().err
    assert "100x70 -> 96x64" in notes and "30 -> 23.976 fps" in notes and "-> 25 frames" in notes
    assert [line for line in notes.splitlines() if line.startswith("sampling")] == [
        "sampling 0/6",
        "sampling 3/6",
        "sampling 6/6",
    ]
    out = read_video(tmp_path / "out.mp4")
    assert out.fps == Fraction(24000, 1001) and out.frames.shape == (25, 64, 96, 3)
