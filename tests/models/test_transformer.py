"""The whole transformer: golden velocities, and what must not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden
from helpers.transformer import LIMIT, REFERENCES, inputs, model, run

from justdubit_jax.models.attention import Execution
from justdubit_jax.models.block import Skip
from justdubit_jax.models.transformer import Modality, Transformer
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights, parameters
from justdubit_jax.weights.parts import build_part


@pytest.mark.parametrize(
    ("file", "case", "options"),
    [
        ("transformer_19b", "", {"cross_timestep": "other"}),
        ("transformer_19b", "per_token_cross.", {"cross_timestep": "own"}),
        ("transformer_19b", "no_text_mask.", {"cross_timestep": "other"}),
        ("cross_mask_19b", "", {"cross_timestep": "other", "isolated": REFERENCES}),
        ("cross_mask_19b", "per_token_cross.", {"cross_timestep": "own", "isolated": REFERENCES}),
    ],
)
def test_velocities_equal_the_reference(file, case, options):
    tensors, _ = load_golden(file)
    video, audio = run(model(), *inputs(case != "no_text_mask."), **options)
    assert error(video, tensors[f"expect.{case}video_velocity"]) < LIMIT
    assert error(audio, tensors[f"expect.{case}audio_velocity"]) < LIMIT


# LTX-2.3: gated heads, modulated attention to the text. Zero times a gate is zero, so an isolated
# query leaves the bias alone there too.
FLAVOUR_23 = "transformer_22b"


@pytest.mark.parametrize(("file", "case"), [("cross_mask_22b", ""), (FLAVOUR_23, "stg.")])
def test_velocities_of_ltx_2_3_equal_the_reference(file, case):
    tensors, _ = load_golden(file)
    values_only = skip(video_self=(1, 0), audio_self=(1, 0))  # which pass the gate, too
    options = {"skip": values_only} if case else {"isolated": REFERENCES}
    given = inputs(file=FLAVOUR_23)
    video, audio = run(model(FLAVOUR_23), *given, cross_timestep="other", **options)
    assert error(video, tensors[f"expect.{case}video_velocity"]) < LIMIT
    assert error(audio, tensors[f"expect.{case}audio_velocity"]) < LIMIT


def test_gate_by_the_other_modalitys_sigma():
    """ltx-core's rule since 1.1.4, on the tokens of Dub-It: references at negative positions."""
    tensors, _ = load_golden("dubit_22b")
    sigma = jnp.asarray(tensors["input.sigma"])

    def modality(name: str, reference: str) -> Modality:
        tokens = [tensors[f"input.{name}.{part}"] for part in (reference, "target")]
        places = [tensors[f"expect.positions.{name}.{part}"] for part in (reference, "target")]
        clean = jnp.full(len(sigma), tokens[0].shape[1], jnp.int32)
        context = jnp.asarray(tensors[f"input.{name}.context"])
        latents, positions = jnp.concatenate(tokens, 1), jnp.concatenate(places, 2)
        return Modality(latents, positions, context, sigma, clean)

    given = modality("video", "reference.factor1"), modality("audio", "reference")
    video, audio = run(model(FLAVOUR_23), *given, cross_timestep="other_gate")
    want_video, want_audio = (
        tensors[f"expect.factor1.{name}_velocity"] for name in ("video", "audio")
    )
    assert error(video[:, -want_video.shape[1] :], want_video) < LIMIT
    assert error(audio[:, -want_audio.shape[1] :], want_audio) < LIMIT


def test_remat_changes_nothing():
    plain = run(model(), *inputs(), cross_timestep="own")
    remat = run(model(), *inputs(), cross_timestep="own", execution=Execution("full"))
    jax.tree.map(np.testing.assert_array_equal, plain, remat)


def test_each_block_is_prepared_by_its_number():
    seen: list[int] = []

    def prepare(block, index):
        jax.debug.callback(lambda number: seen.append(int(number)), index)

    model()(*inputs(), cross_timestep="own", prepare_block=prepare)
    jax.effects_barrier()
    assert sorted(seen) == list(range(model().config.layers))


def skip(**which) -> Skip:
    """Flags [layers, samples], of which those named are set."""
    none = jnp.zeros((model().config.layers, 2), bool)
    return Skip(
        *(none.at[which[name]].set(True) if name in which else none for name in Skip._fields)
    )


@pytest.mark.parametrize(
    ("case", "which"),
    [
        ("stg", {"video_self": (1, 0), "audio_self": (1, 0)}),  # block 1 of sample 0
        ("isolated", {"audio_to_video": ..., "video_to_audio": ...}),
    ],
)
def test_skipped_attention_equals_the_reference(case, which):
    tensors, _ = load_golden("transformer_19b")
    video, audio = run(model(), *inputs(), cross_timestep="other", skip=skip(**which))
    assert error(video, tensors[f"expect.{case}.video_velocity"]) < LIMIT
    assert error(audio, tensors[f"expect.{case}.audio_velocity"]) < LIMIT


def test_training_has_no_flags_to_skip_by():
    """Without `skip` the scan over the blocks takes no flags, and nothing is selected by them."""

    def equations(**options):
        call = functools.partial(model(), cross_timestep="own", **options)
        scans = [e for e in jax.make_jaxpr(call)(*inputs()).eqns if e.primitive.name == "scan"]
        return [e.primitive.name for e in scans[0].params["jaxpr"].eqns], scans[0].invars

    (plain, inputs_of_plain), (flagged, inputs_of_flagged) = equations(), equations(skip=skip())
    assert len(inputs_of_plain) == len(inputs_of_flagged) - len(Skip._fields)
    assert plain == equations(skip=None)[0] and len(plain) < len(flagged)
    want = run(model(), *inputs(), cross_timestep="own")
    got = run(model(), *inputs(), cross_timestep="own", skip=skip())
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_bfloat16_is_close_to_float32():
    checkpoint = golden_checkpoint("transformer_19b")
    abstract = build_part(keys.TRANSFORMER, checkpoint.config, checkpoint.shapes)
    half = load_weights(checkpoint, keys.TRANSFORMER, abstract, jnp.bfloat16)
    video, audio = (m._replace(latents=m.latents.astype(jnp.bfloat16)) for m in inputs())
    got = run(half, video, audio, cross_timestep="own")
    want = run(model(), *inputs(), cross_timestep="own")
    for g, w in zip(got, want, strict=True):
        assert g.dtype == jnp.bfloat16
        assert error(g.astype(jnp.float32), w) < 0.05  # 8 bits of mantissa, two blocks


def test_blocks_are_one_stacked_module():
    abstract = nnx.eval_shape(lambda: Transformer(model().config))
    stacked = {p: v.shape for p, v in parameters(abstract).items() if "blocks" in p}
    assert stacked and all(shape[0] == model().config.layers for shape in stacked.values())
