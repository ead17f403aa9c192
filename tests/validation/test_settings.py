"""The validation's settings, what they share with the training's, and that no key is ignored."""

import json
import re
from fractions import Fraction

import pytest
from helpers.commands import REPO
from helpers.published import published

from justdubit_jax import dub
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout
from justdubit_jax.sampling.guidance import Guidance
from justdubit_jax.training import settings
from justdubit_jax.validation.settings import read_validation

ENCODER = f"model.text_encoder_path={REPO / 'configs'}"
ONE = (ENCODER, "validation.prompts=('A face says: hello.',)")


def read(*flags):
    return read_validation(published(*flags))


def keys(config, prefix=""):
    """The dotted keys of a ConfigDict."""
    for name, value in config.items():
        inner = hasattr(value, "items")
        yield from keys(value, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]


def test_every_key_of_the_config_is_read():
    """Without a key that is read a reader cannot do, so whatever can be left out is ignored."""
    everything = (*ONE, "wandb.enabled=True", "validation.holdout=1")
    ignored = []
    for key in keys(published()):
        config, (*sections, name) = published(*everything), key.split(".")
        with config.unlocked():
            section = config
            for part in sections:
                section = section[part]
            del section[name]
        try:
            settings.read(config)
            read_validation(config)
        except InputError as error:
            assert str(error) == f"config: {key} is missing, expected as in configs/dub.py"
        else:
            ignored.append(key)
    assert ignored == ["hub.hub_model_id"]  # whatever it is, hub.push_to_hub is refused


def test_the_published_validation():
    v = read()
    assert (v.prompts, v.images, v.reference_videos, v.text_encoder_path) == ((), (), (), None)
    assert (v.width, v.height, v.frames, v.frame_rate) == (640, 352, 121, Fraction(25))
    assert (v.steps, v.interval, v.seed, v.videos_per_prompt) == (30, 100, 42, 1)
    assert (v.batch_guidance, v.holdout, v.keep_best) == (None, 0, False)
    assert v.with_sound and not v.skip_initial and not v.include_reference
    assert v.negative_prompt == dub.NEGATIVE_PROMPT


def test_guidance_of_the_sound_is_the_pictures_unless_given():
    def guidance(*more):
        return read(*(f"validation.{flag}" for flag in more)).guidance

    assert guidance() == (Guidance(cfg=3.0), Guidance(cfg=3.0))
    alike = guidance("guidance_scale=2", "guidance_rescale=0.5")
    assert alike[0] == alike[1] == Guidance(cfg=2.0, rescale=0.5)
    assert guidance(
        "audio_cfg_scale=7",
        *("video_modality_guidance_scale=3", "audio_modality_guidance_scale=2"),
        *("guidance_rescale=0.7", "audio_guidance_rescale=0"),
        *("stg_scale=1", "stg_blocks=(1, 2)", "stg_mode=stg_v"),
    ) == (Guidance(3.0, 1.0, 3.0, 0.7, (1, 2)), Guidance(7.0, 1.0, 2.0, 0.0, ()))


def test_the_text_encoder_is_wanted_only_for_samples():
    lost = "model.text_encoder_path=nowhere"
    prompt = "validation.prompts=('a',)"
    assert read(lost).text_encoder_path is None
    assert read(lost, prompt, "validation.interval=0").text_encoder_path is None
    assert read(*ONE).text_encoder_path == REPO / "configs"
    with pytest.raises(InputError, match="text_encoder_path is 'nowhere', expected a file or"):
        read(lost, prompt)
    with pytest.raises(InputError, match="text_encoder_path is not given"):
        read(prompt)


def test_the_best_is_kept_where_there_is_a_holdout():
    best = "checkpoints.keep_best=True"
    assert read(best, "validation.holdout=1").keep_best
    with pytest.raises(InputError, match="keep_best is True, expected False: without "):
        read(best)


def test_samples_are_of_the_trained_model():
    trained = "training_strategy.enable_cross_attention_masking=False"
    shown = "validation.enable_cross_attention_masking=False"
    read(trained, shown)
    with pytest.raises(InputError, match="masking is False, expected True: as training_strategy"):
        read(shown)
    with pytest.raises(InputError, match="masking is True, expected False: as training_strategy"):
        read(trained)


@pytest.mark.parametrize("name", ["images", "reference_videos"])
def test_files_are_one_a_prompt(name):
    two = f"validation.{name}={(str(REPO / 'README.md'), str(REPO / 'LICENSE'))}"
    with pytest.raises(InputError, match=f"{name} is .* one for each of validation.prompts, which"):
        read(*ONE, two)
    with pytest.raises(InputError, match=rf"{name}\[0\] is 'nowhere.mp4', expected a file or fol"):
        read(*ONE, f"validation.{name}=('nowhere.mp4',)")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("prompts=(' ',)", "prompts is (' ',), expected no empty prompt"),
        ("prompts=(3,)", "prompts is (3,), expected a tuple of texts"),
        ("stg_mode=stg_x", "expected one of stg_av, stg_v"),
        ("stg_blocks=('a',)", "stg_blocks is ('a',), expected a tuple of whole numbers"),
        ("stg_scale=nan", "stg_scale is nan, expected a number of at least 0"),
        ("guidance_scale=nan", "guidance_scale is nan, expected a number of at least 1"),
        ("audio_cfg_scale=0.5", "audio_cfg_scale is 0.5, expected a number of at least 1"),
        ("audio_cfg_scale=inf", "audio_cfg_scale is inf, expected a number of at least 1"),
        ("audio_modality_guidance_scale=0", "audio_modality_guidance_scale is 0"),
        ("video_modality_guidance_scale=0", "video_modality_guidance_scale is 0"),
        ("audio_guidance_rescale=1.5", "rescale is 1.5, expected a number from 0 to 1"),
        ("video_dims=(96, 64)", "video_dims is (96, 64), expected (width, height, frames)"),
        ("video_dims=(96, 64.0, 25)", "expected a tuple of whole numbers"),
        ("frame_rate=0.0", "frame_rate is 0.0, expected frames per second"),
        ("frame_rate=nan", "frame_rate is nan, expected frames per second"),
        ("seed=4294967296", "expected a whole number from 0 to 4294967295"),
        ("inference_steps=0", "inference_steps is 0, expected a whole number of at least 1"),
        ("videos_per_prompt=0", "videos_per_prompt is 0, expected a whole number of at least 1"),
        ("interval=-1", "validation.interval is -1, expected a whole number of at least 0"),
        ("holdout=-1", "holdout is -1, expected a whole number of at least 0"),
    ],
)
def test_what_is_refused(flag, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(f"validation.{flag}")


@pytest.mark.parametrize("dims", [(640, 350, 121), (0, 64, 25), (96, -32, 25), (96, 64, 24)])
def test_the_size_is_one_of_the_checkpoints(dims):
    layout = Layout.from_metadata(
        json.loads((REPO / "tests/ltx-2-19b-dev.config.json").read_text())
    )
    read("validation.video_dims=(96, 64, 25)").check_size(layout)
    message = f"video_dims is {dims}, expected width and height in multiples of 32, and frames 8k+1"
    with pytest.raises(InputError, match=re.escape(message)):
        read(f"validation.video_dims={dims}").check_size(layout)


def test_blocks_are_needed_where_they_are_perturbed():
    assert read("validation.stg_blocks=()").guidance[0].stg_blocks == ()
    with pytest.raises(InputError, match=r"stg_blocks is \(\), expected numbers of blocks"):
        read("validation.stg_blocks=()", "validation.stg_scale=1.0")
