"""Samples and held-out losses while training, on the demo's files."""

import dataclasses
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
from justdubit_jax.data.samples import SampleFiles, find_samples, group_by_shape
from justdubit_jax.devices import sharding
from justdubit_jax.dubbing.job import Encoded, Job, Request
from justdubit_jax.errors import InputError
from justdubit_jax.latents import text_cache
from justdubit_jax.latents.text_cache import cached_contexts
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import load_base, prepare_training
from justdubit_jax.validation import samples
from justdubit_jax.validation.fixed_loss import FixedLoss
from justdubit_jax.validation.holdout import split_holdout
from justdubit_jax.validation.prepare import Prepared, prepare_validation
from justdubit_jax.validation.samples import SampleWriter, in_batches, turns
from justdubit_jax.validation.settings import read_validation
from justdubit_jax.weights.checkpoint import open_checkpoint


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


@pytest.fixture(scope="module")
def without(demo, tmp_path_factory):
    output = tmp_path_factory.mktemp("without") / "out"
    train.main(config(demo, output, *flags(demo, "--config.validation.interval=0")))
    return load_file(RunFolder(output).lora(3))


@pytest.mark.deep
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


@pytest.mark.deep
def test_a_run_killed_while_sampling_continues_from_its_checkpoint(
    demo, without, tmp_path, monkeypatch
):
    def killed(self, step, weights):
        if step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleWriter, "write", killed)
        train.main(config(demo, tmp_path / "out", *flags(demo)))
    train.main(config(demo, tmp_path / "out", *flags(demo)))
    got = load_file(RunFolder(tmp_path / "out").lora(3))
    assert all((got[key] == without[key]).all() for key in without)


@pytest.mark.deep
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
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"no")
    with pytest.raises(InputError, match=f"^{tmp_path}/.*: not a readable cached prompt: "):
        cached_contexts(["a"], *arguments)


@pytest.mark.deep
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
    chosen = config(demo, tmp_path_factory.mktemp("prepared"), *flags(demo, *more))
    run, validation = settings.read(chosen), read_validation(chosen)
    return run, validation, prepare_validation(run, validation, open_checkpoint(run.model_path))


def on_mesh(demo, prepared, mesh, interrupted=lambda: False, **change):
    """The run's sample writer and fixed loss on a mesh, and the demo's model there."""
    run, validation, encoded = prepared
    validation = dataclasses.replace(validation, **change)
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, mesh)
    shapes, place = training.abstract.adapters, training.place.adapters
    trained = lora_files.read_file(RunFolder(demo / "run").lora(60), shapes)
    adapters = {path: jax.device_put(x, place[path]) for path, x in trained.items()}
    display = Display(Console(file=io.StringIO()), 1)
    writer = SampleWriter(training, validation, source, encoded, display, (), interrupted)
    loss = FixedLoss(training.objective, training.graphdef, training.layout, mesh)
    return writer, loss, Weights(adapters, load_base(training, source))


def sampled_and_measured(demo, prepared, mesh, **change):
    """Latents of every turn by its number, and the loss terms of the demo's four samples."""
    writer, loss, weights = on_mesh(demo, prepared, mesh, **change)
    run, validation, encoded = prepared
    groups = group_by_shape(find_samples(run.data_root, run.folders))
    latents = {}
    for batch in in_batches(turns(encoded, validation.videos_per_prompt), mesh.size):
        done = writer.sample(batch, weights, lambda *_: None)
        latents |= {turn.number: x for turn, x in done}
    return latents, loss.mean(weights, groups)


@pytest.fixture(scope="module")
def on_one(demo, prepared):
    return sampled_and_measured(demo, prepared, sharding.make_mesh(1, 1))


@pytest.mark.deep
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
    run, *rest = prepared
    left = iter([False] * calls)
    run = dataclasses.replace(run, output_dir=tmp_path)
    mesh = sharding.make_mesh(1, 1)
    writer, _, weights = on_mesh(demo, (run, *rest), mesh, lambda: next(left, True))
    written = writer.write(0, weights)
    assert len(written) == files == len(list(tmp_path.rglob("*.mp4")))


def test_turns_of_equal_shapes_stand_together():
    def of(frames):
        job = Job(frames, 64, 96, Fraction(25), None, None, None)
        context = np.zeros((1, 1), np.float32)
        encoded = Encoded(None, None, None)
        return Prepared("", Request(job, encoded, (context, context), None, seed=5))

    numbered = turns([of(9), of(17), of(9)], 2)
    batches = list(in_batches(numbered, 3))
    assert [[t.number for t in batch] for batch in batches] == [[1, 2, 5], [6], [3, 4]]
    assert [t.request.seed for t in numbered] == [5, 6] * 3


def test_the_holdout_is_chosen_by_the_seed():
    samples = [SampleFiles(str(i), {}) for i in range(20)]
    rest, held = split_holdout(samples, 5, seed=1)
    assert len(held) == 5 and len(rest) == 15 and all(s in samples for s in rest + held)
    assert split_holdout(samples, 5, seed=1) == (rest, held)
    assert split_holdout(samples, 5, seed=2)[1] != held
    assert split_holdout(samples, 0, seed=1) == (samples, [])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("validation.reference_videos=('nowhere.mp4',)", "[0] is 'nowhere.mp4', expected a file"),
        ("validation.video_dims=(96, 350, 25)", "is (96, 350, 25), expected width and height in"),
        ("validation.holdout=4", "leaves no sample"),
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


@pytest.mark.deep
def test_without_a_reference_the_sound_is_as_long_as_the_picture(demo, tmp_path):
    shutil.copy(demo / "run/samples/step_000000_1.png", tmp_path / "first.png")
    more = ("--config.validation.reference_videos=()", "--config.optimization.steps=1")
    more += (f"--config.validation.images={(str(tmp_path / 'first.png'),)}",)
    run = config(demo, tmp_path / "out", *flags(demo, *more))
    train.main(run)
    assert read_validation(run).images
    clip = probe(tmp_path / "out/samples/step_000000_1.mp4")
    assert clip.has_audio and clip.fps == 25
