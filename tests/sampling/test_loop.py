"""The sampling loop on the golden transformer, guided in every way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, load_golden
from helpers.transformer import model

from justdubit_jax.errors import InputError
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.sampling.guidance import Guidance, SamplingSettings
from justdubit_jax.sampling.loop import Conditioned, denoise, predict

DENOISING, DENOISING_META = load_golden("denoise_19b")

# 30 x the reference's own float32 error (the golden vectors' README).
LIMIT = 4e-5

# LTX-2's own guidance, with which both combinations of the golden file were made.
VIDEO = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(1,))
AUDIO = Guidance(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(1,))
CFG = Guidance(cfg=DENOISING_META["cfg_scale"])
SETTINGS = SamplingSettings(CFG, CFG, True, "other", jnp.float32, batched=True)


def changed(**changes) -> SamplingSettings:
    return SamplingSettings(**{**vars(SETTINGS), **changes})


def conditioned(name: str) -> Conditioned:
    fields = ("noise", "ref", "positions", "context", "negative_context")
    return Conditioned(*(jnp.asarray(DENOISING[f"input.{name}.{field}"]) for field in fields))


STREAMS = conditioned("video"), conditioned("audio")
LEVELS = jnp.asarray(DENOISING["input.sigmas"])
sample = nnx.jit(denoise, static_argnums=4)
predicted = nnx.jit(predict, static_argnums=5)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("cfg", changed(isolate=False)),
        ("cfg_cross_mask", SETTINGS),
        ("cfg_cross_mask_per_token_cross", changed(cross_timestep="own", batched=False)),
        ("multi_modal_cross_mask", changed(video=VIDEO, audio=AUDIO)),
        ("multi_modal_cross_mask", changed(video=VIDEO, audio=AUDIO, batched=False)),
    ],
)
def test_denoising_equals_the_reference(case, settings):
    got = sample(model(), *STREAMS, LEVELS, settings)
    for name, tokens, stream in zip(("video", "audio"), got, STREAMS, strict=True):
        assert error(tokens, DENOISING[f"expect.{case}.{name}"]) < LIMIT
        references = stream.reference.shape[1]
        np.testing.assert_array_equal(tokens[:, :references], stream.reference)


def test_first_prediction_equals_the_reference():
    start = tuple(stream.start() for stream in STREAMS)
    got = predicted(model(), *STREAMS, start, LEVELS[0], changed(video=VIDEO, audio=AUDIO))
    for name, tokens in zip(("video", "audio"), got, strict=True):
        assert error(tokens, DENOISING[f"expect.multi_modal_cross_mask.denoised0.{name}"]) < LIMIT


def test_a_schedule_in_pieces_gives_the_same_sample():
    """The piece of one step may be compiled otherwise than a loop: equal up to rounding."""
    whole = sample(model(), *STREAMS, LEVELS, SETTINGS)
    for size in (1, 2):
        tokens = tuple(stream.start() for stream in STREAMS)
        for at in range(0, len(LEVELS) - 1, size):
            tokens = sample(model(), *STREAMS, LEVELS[at : at + size + 1], SETTINGS, tokens)
        for got, want in zip(tokens, whole, strict=True):
            assert error(got, want) < 1e-6


@pytest.mark.parametrize("batched", [True, False])
def test_samples_of_a_batch_do_not_touch_one_another(batched):
    """Beside another sample, the golden one comes out as alone; all guidance is on."""

    def with_another(stream: Conditioned) -> Conditioned:
        pair = [None if x is None else jnp.concatenate([x, x[:, ::-1]]) for x in stream]
        return Conditioned(*pair)._replace(positions=stream.positions)

    streams = [with_another(stream) for stream in STREAMS]
    got = sample(model(), *streams, LEVELS, changed(video=VIDEO, audio=AUDIO, batched=batched))
    for name, tokens in zip(("video", "audio"), got, strict=True):
        assert error(tokens[:1], DENOISING[f"expect.multi_modal_cross_mask.{name}"]) < LIMIT


def test_given_tokens_stay_clean():
    """They act as reference tokens do, but take part in the attention between the modalities."""
    video, audio = STREAMS
    given = video.noise[:, 6:12] / 2
    image = video._replace(first_frame=given)
    longer = video._replace(
        reference=jnp.concatenate([video.reference, given], 1), noise=video.noise[:, 6:]
    )
    settings = changed(video=Guidance(), audio=Guidance(), isolate=False)
    got = sample(model(), image, audio, LEVELS, settings)
    want = sample(model(), longer, audio, LEVELS, settings)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(got[0][:, 12:18], given)
    isolated = sample(model(), image, audio, LEVELS, changed(video=Guidance(), audio=Guidance()))
    np.testing.assert_array_equal(isolated[0][:, 12:18], given)
    assert error(isolated[1], got[1]) > 1e-3


def test_passes_that_are_off_are_not_computed():
    off = Guidance()
    sizes = []

    class Recorder(Transformer):
        def __init__(self):
            self.config = model().config

        def __call__(self, video, audio, **options):
            sizes.append((len(video.latents), options["skip"] is not None))
            return video.latents, audio.latents

    start = tuple(stream.start() for stream in STREAMS)
    for video in (off, CFG, VIDEO):
        predict(Recorder(), *STREAMS, start, 1.0, changed(video=video, audio=off))
    assert sizes == [(1, False), (2, False), (4, True)]


@pytest.mark.parametrize("block", [2, -1])
def test_a_block_outside_the_model_is_refused(block):
    settings = changed(video=Guidance(stg=1.0, stg_blocks=(0, block)))
    with pytest.raises(InputError, match=f"stg_blocks: got {block}, expected 0 to 1"):
        sample(model(), *STREAMS, LEVELS, settings)


def test_cfg_needs_a_negative_context():
    streams = [stream._replace(negative=None) for stream in STREAMS]
    with pytest.raises(ValueError, match="no negative context"):
        sample(model(), *streams, LEVELS, SETTINGS)
