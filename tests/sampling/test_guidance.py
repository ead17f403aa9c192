"""Predictions combined by guidance, and which of them a step needs."""

import jax.numpy as jnp
from helpers.golden import error, load_golden

from justdubit_jax.sampling.guidance import Guidance, Prediction, SamplingSettings, stg_blocks

GOLDEN, META = load_golden("tokens")
OFF, CFG = Guidance(), Guidance(cfg=3.0)
# LTX-2's own guidance, with which the golden combination was made.
ALL = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(1,))


def test_combinations_equal_the_reference():
    names = ("cond", "uncond", "perturbed", "modality")
    plain, *others = (jnp.asarray(GOLDEN[f"input.guide.{name}"]) for name in names)
    scales = META["guidance"]
    got = {
        "cfg": Guidance(cfg=scales["cfg"]).combine(plain, others[0], None, None),
        "stg": Guidance(stg=scales["stg"]).combine(plain, None, others[1], None),
        "multi_modal": ALL.combine(plain, *others),
        "multi_modal_no_rescale": Guidance(7.0, 1.0, 3.0).combine(plain, *others),
    }
    for name, value in got.items():
        assert error(value, GOLDEN[f"expect.guide.{name}"]) < 1e-6, name  # float32 rounding
    assert OFF.combine(plain, *others) is plain


def test_a_step_needs_the_passes_whose_guidance_is_on():
    def passes(video: Guidance, audio: Guidance):
        return SamplingSettings(video, audio, True, "other", jnp.float32, batched=True).passes

    assert passes(OFF, OFF) == (Prediction.PLAIN,)
    assert passes(OFF, CFG) == (Prediction.PLAIN, Prediction.NEGATIVE)
    assert passes(ALL, OFF) == tuple(Prediction)


def test_stg_modes():
    assert stg_blocks("stg_av", [0, 1]) == ((0, 1), (0, 1))
    assert stg_blocks("stg_v", [1]) == ((1,), ())
    assert stg_blocks("stg_av", None) == (None, None)
