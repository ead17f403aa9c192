"""Samples and held-out losses while training, on the demo's files."""

import dataclasses
import functools
import io
import json
import re
import shutil
from fractions import Fraction

import av
import jax
import numpy as np
import pytest
from helpers.toy import config
from rich.console import Console
from safetensors.numpy import load_file

from justdubit_jax import train
from justdubit_jax.clips.read import probe, read_video
from justdubit_jax.clips.write import write_video
from justdubit_jax.data.samples import Sample, find_samples, make_buckets
from justdubit_jax.devices import sharding
from justdubit_jax.dubbing.job import Encoded, Job
from justdubit_jax.errors import InputError
from justdubit_jax.latents import text_cache
from justdubit_jax.latents.text_cache import cached_contexts
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.sampling.guidance import Guidance
from justdubit_jax.training import settings
from justdubit_jax.validation import samples
from justdubit_jax.validation.fixed_loss import FixedLoss
from justdubit_jax.validation.holdout import split_holdout
from justdubit_jax.validation.prepare import Prepared, prepare_validation
from justdubit_jax.validation.samples import Sampler, in_batches, turns
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint
from justdubit_jax.weights.load import load_weights


def flags(demo, *more):
    """Three steps with a sample at 0 and 2; `more` replaces flags of the same key."""
    clip = str(demo / "dataset/clips/000_reference.mp4")
    chosen = (
        *("--config.optimization.steps=3", "--config.checkpoints.interval=2"),
        *("--config.validation.interval=2", "--config.validation.inference_steps=2"),
        f"--config.model.text_encoder_path={demo / 'assets/gemma'}",
        "--config.validation.prompts=('A face says: hello.',)",
        f"--config.validation.reference_videos={(clip,)}",
        *more,
    )
    return tuple({flag.partition("=")[0]: flag for flag in chosen}.values())


def streams(path):
    with av.open(str(path)) as container:
        return {s.type: s.codec_context.name for s in container.streams}


def test_the_demos_samples_and_dub(demo):
    samples = [demo / f"run/samples/step_{step:06d}_1.mp4" for step in (0, 30, 60)]
    for path in (*samples, demo / "dubbed.mp4"):
        assert streams(path) == {"video": "h264", "audio": "aac"}
        clip = read_video(path)
        assert clip.frames.shape == (25, 64, 96, 3) and clip.fps == 25
    assert all(path.with_suffix(".png").stat().st_size > 1000 for path in samples)
    assert (demo / "run/samples/loss.png").is_file()
    assert len(list((demo / "run/contexts").glob("*.safetensors"))) == 2  # prompt and negative
    assert list((demo / "run/tensorboard").glob("events*"))


def test_guidance_of_the_sound_is_the_pictures_unless_given(demo, tmp_path):
    def guidance(*more):
        return settings.read(config(demo, tmp_path, *more)).validation.guidance

    key = "--config.validation."
    assert guidance() == (Guidance(cfg=3.0), Guidance(cfg=3.0))
    alike = guidance(f"{key}guidance_scale=2", f"{key}guidance_rescale=0.5")
    assert alike[0] == alike[1] == Guidance(cfg=2.0, rescale=0.5)
    assert guidance(
        f"{key}audio_cfg_scale=7",
        *(f"{key}video_modality_guidance_scale=3", f"{key}audio_modality_guidance_scale=2"),
        *(f"{key}guidance_rescale=0.7", f"{key}audio_guidance_rescale=0"),
        *(f"{key}stg_scale=1", f"{key}stg_blocks=(1, 2)", f"{key}stg_mode=stg_v"),
    ) == (Guidance(3.0, 1.0, 3.0, 0.7, (1, 2)), Guidance(7.0, 1.0, 2.0, 0.0, ()))


@pytest.fixture(scope="module")
def without(demo, tmp_path_factory):
    output = tmp_path_factory.mktemp("without") / "out"
    train.main(config(demo, output, *flags(demo, "--config.validation.interval=0")))
    return load_file(RunFolder(output).lora(3))


def test_sampling_changes_nothing_in_the_training(demo, without, tmp_path):
    more = ("--config.validation.videos_per_prompt=2",)
    more += ("--config.validation.include_reference_in_output=True",)
    train.main(config(demo, tmp_path / "out", *flags(demo, *more)))
    got = load_file(RunFolder(tmp_path / "out").lora(3))
    assert all((got[key] == without[key]).all() for key in without)
    names = sorted(p.name for p in (tmp_path / "out/samples").glob("*.mp4"))
    assert names == [f"step_{step:06d}_{n}.mp4" for step in (0, 2) for n in (1, 2)]
    first, second = (
        read_video(tmp_path / f"out/samples/step_000000_{n}.mp4").frames for n in (1, 2)
    )
    assert first.shape == (25, 64, 192, 3)  # the reference beside the sample
    assert (first[:, :, 96:].astype(int) != second[:, :, 96:]).any()  # another seed


def test_a_run_killed_while_sampling_continues_from_its_checkpoint(
    demo, without, tmp_path, monkeypatch
):
    def killed(self, step, adapters, frozen):
        if step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Sampler, "write", killed)
        train.main(config(demo, tmp_path / "out", *flags(demo)))
    train.main(config(demo, tmp_path / "out", *flags(demo)))
    got = load_file(RunFolder(tmp_path / "out").lora(3))
    assert all((got[key] == without[key]).all() for key in without)


def test_a_failing_sample_is_reported_and_training_goes_on(demo, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(samples, "decode_samples", fails)
    train.main(config(demo, tmp_path / "out", *flags(demo)))
    assert "sample 1 of step 2 was not written: out of memory" in capsys.readouterr().err
    assert RunFolder(tmp_path / "out").lora(3).is_file()


def test_prompts_are_encoded_once(demo, tmp_path, monkeypatch):
    checkpoint_path, gemma = demo / "assets/ltx-2-tiny.safetensors", demo / "assets/gemma"
    checkpoint = open_checkpoint(checkpoint_path)
    arguments = (checkpoint, checkpoint_path, gemma, tmp_path)
    first = cached_contexts(["a", "b"], *arguments)
    monkeypatch.setattr(text_cache, "text_encoder", None)
    again = cached_contexts(["b", "a"], *arguments)
    assert all((x == y).all() for p in "ab" for x, y in zip(first[p], again[p], strict=True))
    with pytest.raises(TypeError):  # a new prompt needs the encoder
        cached_contexts(["c"], *arguments)


def test_held_out_losses_are_the_same_numbers_on_every_run(demo, tmp_path):
    more = ("--config.validation.holdout=2", "--config.checkpoints.keep_best=True")
    more += ("--config.validation.prompts=()", "--config.validation.reference_videos=()")
    for name in ("a", "b"):
        train.main(config(demo, tmp_path / name, *flags(demo, *more)))
    texts = [(tmp_path / name / "validation.jsonl").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    records = [json.loads(line) for line in texts[0].splitlines()]
    assert [r["step"] for r in records] == [0, 2, 3]
    assert {"loss", "loss_video", "loss_audio", "loss_face", "loss_background"} < set(records[0])
    best = json.loads((tmp_path / "a/best.json").read_text())
    least = min(records[1:], key=lambda r: r["loss"])
    assert (best["step"], best["loss"]) == (least["step"], least["loss"])
    assert (tmp_path / "a/checkpoints" / best["file"]).is_file()


@pytest.fixture(scope="module")
def prepared(demo, tmp_path_factory):
    """A run of two prompts with two seeds each, and what is encoded for it."""
    clips = tuple(str(demo / f"dataset/clips/00{n}_reference.mp4") for n in (0, 1))
    more = ("--config.validation.prompts=('A face says: hello.', 'A face says: bye.')",)
    more += (f"--config.validation.reference_videos={clips}",)
    more += ("--config.validation.videos_per_prompt=2", "--config.validation.guidance_rescale=0.7")
    run = settings.read(config(demo, tmp_path_factory.mktemp("prepared"), *flags(demo, *more)))
    return run, prepare_validation(run, open_checkpoint(run.model_path))


def on_mesh(demo, prepared, mesh, interrupted=lambda: False, **change):
    """The run's sampler and fixed loss on a mesh, and the demo's model there."""
    run, encoded = prepared
    run = dataclasses.replace(run, validation=dataclasses.replace(run.validation, **change))
    source, place = (
        open_checkpoint(run.model_path),
        functools.partial(sharding.weight, mesh),
    )
    model, _ = lora.adapted_model(source.config, run.lora)
    graphdef, shapes, frozen = lora.split(
        load_weights(source, keys.TRANSFORMER, model, run.dtype, place)
    )
    trained = lora_files.read_file(RunFolder(demo / "run").lora(60), shapes)
    adapters = {path: jax.device_put(x, place(path, x.shape)) for path, x in trained.items()}
    display = Display(Console(file=io.StringIO()), 1)
    sampler = Sampler(
        run, source, graphdef, model.config, encoded, "own", mesh, display, (), interrupted
    )
    return sampler, FixedLoss(run, graphdef, "own", mesh), adapters, frozen


def sampled_and_measured(demo, prepared, mesh, **change):
    """Latents of every turn by its number, and the loss terms of the demo's four samples."""
    sampler, loss, *model = on_mesh(demo, prepared, mesh, **change)
    run, _ = prepared
    buckets = make_buckets(find_samples(run.data_root, run.folders))
    latents = {}
    for batch in in_batches(sampler._turns, mesh.size):
        done = sampler._sample(batch, *model, lambda *_: None)
        latents |= {turn.number: x for turn, x in done}
    return latents, loss.mean(*model, buckets)


@pytest.fixture(scope="module")
def on_one(demo, prepared):
    return sampled_and_measured(demo, prepared, sharding.make_mesh(1, 1))


@pytest.mark.parametrize(("data_axis", "fsdp", "batched"), [(2, 4, False)])
def test_devices_share_the_samples(demo, prepared, on_one, monkeypatch, data_axis, fsdp, batched):
    """Four samples as three and one, and as four beside four that are dropped."""
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 2)  # the toy's weights are all below it
    mesh = sharding.make_mesh(data_axis, fsdp)
    latents, losses = sampled_and_measured(demo, prepared, mesh, batch_guidance=batched)
    assert list(latents) == list(on_one[0]) == [1, 2, 3, 4]
    for number, pair in on_one[0].items():
        for got, want in zip(latents[number], pair, strict=True):
            # float32 sums in another order
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert np.abs(latents[1][0] - latents[2][0]).max() > 0.1  # another seed
    assert losses == pytest.approx(on_one[1], rel=1e-5)


@pytest.mark.parametrize(("calls", "files"), [(3, 0), (9, 1)])
def test_an_interrupted_sampler_writes_nothing_more(demo, prepared, tmp_path, calls, files):
    """Asked before and after the one call of each sample, then before each decode."""
    run, encoded = prepared
    left = iter([False] * calls)
    run = dataclasses.replace(run, output_dir=tmp_path)
    sampler, _, *model = on_mesh(
        demo, (run, encoded), sharding.make_mesh(1, 1), lambda: next(left, True)
    )
    written = sampler.write(0, *model)
    assert len(written) == files == len(list(tmp_path.rglob("*.mp4")))


def test_turns_of_equal_shapes_stand_together():
    def of(frames):
        job = Job(frames, 64, 96, Fraction(25), None, None, None)
        context = np.zeros((1, 1), np.float32)
        encoded = Encoded(None, None, None)
        return Prepared(job, encoded, "", (context, context), None)

    numbered = turns([of(9), of(17), of(9)], 2, seed=5)
    batches = list(in_batches(numbered, 3))
    assert [[t.number for t in batch] for batch in batches] == [[1, 2, 5], [6], [3, 4]]
    assert [t.seed for t in numbered] == [5, 6] * 3


def test_the_holdout_is_chosen_by_the_seed():
    samples = [Sample(str(i), {}) for i in range(20)]
    rest, held = split_holdout(samples, 5, seed=1)
    assert len(held) == 5 and len(rest) == 15 and all(s in samples for s in rest + held)
    assert split_holdout(samples, 5, seed=1) == (rest, held)
    assert split_holdout(samples, 5, seed=2)[1] != held
    assert split_holdout(samples, 0, seed=1) == (samples, [])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("validation.prompts=('a', 'b')", "validation.reference_videos has 1 entries"),
        ("validation.images=('a.png', 'b.png')", "validation.images has 2 entries"),
        ("validation.prompts=(' ',)", "empty prompt"),
        ("validation.reference_videos=('nowhere.mp4',)", "nowhere.mp4 does not exist"),
        ("model.text_encoder_path=nowhere", "text_encoder_path: nowhere does not exist"),
        ("validation.stg_mode=stg_x", "expected one of stg_av, stg_v"),
        ("validation.stg_blocks=('a',)", "stg_blocks is ('a',), expected numbers of blocks"),
        ("validation.guidance_scale=nan", "guidance_scale is nan, expected at least 1"),
        ("validation.audio_cfg_scale=0.5", "audio_cfg_scale is 0.5, expected at least 1"),
        ("validation.audio_modality_guidance_scale=0", "audio_modality_guidance_scale is 0"),
        ("validation.audio_guidance_rescale=1.5", "rescale is 1.5, expected 0 to 1"),
        ("validation.video_dims=(96, 64)", "expected (width, height, frames)"),
        ("validation.video_dims=(0, 64, 25)", "multiples of 32"),
        ("validation.video_dims=(96, 64, 24)", "frames 8k+1"),
        ("validation.prompts=(3,)", "expected texts"),
        ("validation.holdout=4", "leaves no sample"),
        ("checkpoints.keep_best=True", "needs validation.holdout"),
        ("hub.push_to_hub=True", "not supported yet"),
        ("acceleration.load_text_encoder_in_8bit=True", "not needed"),
    ],
)
def test_set_ups_that_fail_before_the_first_step(demo, tmp_path, flag, message):
    with pytest.raises(InputError, match=re.escape(message)):
        train.main(config(demo, tmp_path / "out", *flags(demo, f"--config.{flag}")))
    assert not (tmp_path / "out/state").exists()


def test_a_perturbed_block_outside_the_model_ends_it_before_the_first_step(demo, tmp_path):
    more = ("--config.validation.stg_scale=1.0", "--config.validation.stg_blocks=(3,)")
    with pytest.raises(InputError, match="expected 0 to 2"):
        train.main(config(demo, tmp_path / "out", *flags(demo, *more)))
    assert not RunFolder(tmp_path / "out").lora(2).exists()


def test_a_clip_that_cannot_be_dubbed_ends_it_before_the_first_step(demo, tmp_path):
    write_video(tmp_path / "mute.mp4", np.zeros((25, 64, 96, 3), np.uint8), 25)
    more = (f"--config.validation.reference_videos={(str(tmp_path / 'mute.mp4'),)}",)
    with pytest.raises(InputError, match="no audio stream"):
        train.main(config(demo, tmp_path / "out", *flags(demo, *more)))


def test_without_a_reference_the_sound_is_as_long_as_the_picture(demo, tmp_path):
    shutil.copy(demo / "run/samples/step_000000_1.png", tmp_path / "first.png")
    more = ("--config.validation.reference_videos=()", "--config.optimization.steps=1")
    more += (f"--config.validation.images={(str(tmp_path / 'first.png'),)}",)
    run = config(demo, tmp_path / "out", *flags(demo, *more))
    train.main(run)
    assert settings.read(run).validation.images
    clip = probe(tmp_path / "out/samples/step_000000_1.mp4")
    assert clip.has_audio and clip.fps == 25
