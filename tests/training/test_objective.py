"""The training golden: three steps of the JustDubit objective, and the properties of its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import FOLDER, error, golden_checkpoint, load_golden
from helpers.training import (
    EVERYWHERE,
    FACE,
    GOLDEN,
    GRID,
    LIMIT,
    META,
    TARGETS,
    batch,
    draws,
    objective,
)
from helpers.training import start as golden_start
from parity.golden import Golden
from parity.training import training
from verify_parity import compare

from justdubit_jax.data.batch import Batch
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.models.attention import Execution
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.training.objective import MaskLoss, SigmaSampling, noised, weighted_mean
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights


@pytest.fixture(scope="module")
def adapted():
    """(graphdef, adapter shapes, frozen weights) of the golden model with its adapters."""
    checkpoint = golden_checkpoint("transformer_19b")
    config = lora.LoRAConfig(META["rank"], META["alpha"], 0.0, TARGETS)

    def build():
        model = Transformer(TransformerConfig.from_metadata(checkpoint.config))
        lora.attach(model, config)
        return model

    model = load_weights(checkpoint, keys.TRANSFORMER, nnx.eval_shape(build), jnp.float32)
    return lora.split(model)


@pytest.fixture(scope="module")
def start(adapted, tmp_path_factory):
    return golden_start(tmp_path_factory.mktemp("lora"), adapted[1])


def loss_function(adapted, **options):
    graphdef, _, frozen = adapted

    def loss(adapters, draws, face):
        model = lora.merge(graphdef, adapters, frozen)
        return objective(**options).loss(model, batch()._replace(face_mask=face), draws, GRID)

    return loss


def test_the_golden_training():
    """Losses under both rules, gradients and parameters of three steps, as verify_parity has it."""
    golden = Golden.read(FOLDER / "train_19b.safetensors")
    wanted = sorted(golden.expect)
    got = {name: np.asarray(x) for name, x in training(golden, wanted).items()}
    rows = list(compare(golden, "train_19b", wanted, got))
    assert len(rows) > 40 and [str(row) for row in rows if row.verdict != "ok"] == []


@pytest.mark.parametrize(
    "remat",
    [
        "queries",  # which keeps what the others keep, and more
        pytest.param("attention", marks=pytest.mark.deep),
        pytest.param("offload", marks=pytest.mark.deep),
    ],
)
def test_what_is_recomputed_does_not_change_the_gradient(adapted, start, remat):
    gradient = jax.jit(
        jax.grad(lambda *x: loss_function(adapted, execution=Execution(remat))(*x)[0])
    )
    found = gradient(start, draws(0), FACE if GOLDEN["input.use_face_mask"][0] else EVERYWHERE)
    largest = max(np.abs(leaf).max() for leaf in found.values())
    names = lora_files.file_tensors(found)
    for key, want in GOLDEN.items():
        if key.startswith("expect.step0.grad."):
            name = key.removeprefix("expect.step0.grad.")
            np.testing.assert_allclose(names[name], want, atol=LIMIT * largest)


def test_without_a_mask_every_target_counts_alike(adapted, start):
    graphdef, _, frozen = adapted
    model = lora.merge(graphdef, start, frozen)
    plain, _ = objective("own", None).loss(model, batch(), draws(2), GRID)
    want = GOLDEN["expect.at_start.per_token_cross.plain.loss"]
    assert error(plain, want) < LIMIT


@pytest.mark.parametrize("case", ["", "cross_mask."])
def test_forward_with_a_lora_file(adapted, case):
    """The torch trainer's file, through `read_file`, equals PEFT's forward pass."""
    from helpers.transformer import LIMIT, REFERENCES, inputs, run

    graphdef, shapes, frozen = adapted
    adapters = lora_files.read_file(FOLDER / "lora_adapter_19b.safetensors", shapes)
    isolated = REFERENCES if case else (0, 0)
    model = lora.merge(graphdef, adapters, frozen)
    got = run(model, *inputs(), cross_timestep="other", isolated=isolated)
    tensors, _ = load_golden("lora_19b")
    for name, velocity in zip(("video", "audio"), got, strict=True):
        assert error(velocity, tensors[f"expect.{case}{name}_velocity"]) < LIMIT


def test_weights_that_sum_to_zero_give_zero_loss_and_gradient():
    def loss(scale):
        errors = jnp.full((2, 3, 4), scale)
        return weighted_mean(errors, jnp.zeros((2, 3)))

    value, gradient = jax.value_and_grad(loss)(2.0)
    assert value == 0 and gradient == 0


def test_soft_masks_blend_and_hard_masks_choose():
    mask = jnp.array([[0.0, 0.1, 0.25, 1.0]])
    hard = MaskLoss(1.0, 0.1, 0.1, use_soft_masks=False)
    soft = MaskLoss(1.0, 0.1, 0.1, use_soft_masks=True)
    np.testing.assert_allclose(hard.weights(mask), [[0.1, 0.1, 1.0, 1.0]])  # 0.1 is not above 0.1
    np.testing.assert_allclose(soft.weights(mask), [[0.1, 0.19, 0.325, 1.0]], rtol=1e-6)


def test_first_frames_are_drawn_by_probability_and_never_for_one_frame():
    sampling = SigmaSampling("uniform", min_value=0.2, max_value=0.3)
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 500), batch())

    def draw(first_frame_p, frames):
        drawn = dataclasses.replace(objective(), sampling=sampling, first_frame_p=first_frame_p)
        return drawn.draw(jax.random.key(0), many, frames)

    assert 0.2 < draw(0.3, 3).first_frame.mean() < 0.4
    assert not draw(1.0, 1).first_frame.any()
    sigma = draw(0.3, 3).sigma
    assert sigma.shape == (1000,) and sigma.min() >= 0.2 and sigma.max() <= 0.3


def test_conditioned_tokens_stay_clean():
    one = batch()
    given = jnp.array([6, 0])
    noise, sigma = jnp.ones_like(one.video.target), jnp.array([0.5, 1.0])
    modality = noised(one.video, noise, sigma, given, jnp.float32)
    references = one.video.reference.shape[1]
    np.testing.assert_array_equal(modality.latents[:, :references], one.video.reference)
    target = modality.latents[:, references:]
    np.testing.assert_array_equal(target[0, :6], one.video.target[0, :6])
    np.testing.assert_allclose(target[0, 6:], 0.5 * one.video.target[0, 6:] + 0.5, rtol=1e-6)
    np.testing.assert_array_equal(target[1], noise[1])
    np.testing.assert_array_equal(modality.clean_count, references + given)


def drawn(seed: int, **options):
    target = jnp.zeros((64, 1024, 3))
    stream = batch().video._replace(target=target, reference=jnp.zeros((64, 3072, 3)))
    both = Batch(stream, stream, None)
    sampling = SigmaSampling("shifted_logit_normal", **options)
    made = dataclasses.replace(objective(), sampling=sampling, first_frame_p=0.5)
    return made.draw(jax.random.key(seed), both, 3)


def test_what_is_drawn_is_independent():
    """Of one another, and of the noise of another step."""
    first, second = drawn(0), drawn(1)
    assert not (first.video_noise == first.audio_noise).any()
    assert not (first.video_noise == second.video_noise).any()
    normal = jax.scipy.special.logit(first.sigma) - 0.95  # of 1024 target tokens
    for noise in (first.video_noise, first.audio_noise):
        assert abs(np.corrcoef(normal, noise[:, 0, 0])[0, 1]) < 0.4  # 3 of 64 draws' deviations
        assert not np.isin(np.round(normal, 3), np.round(noise.ravel()[:64], 3)).all()


def test_noise_levels_follow_the_targets_length_and_the_spread():
    """The shift is that of the target's tokens, not of the reference's too."""
    normal = jax.scipy.special.logit(drawn(0).sigma) - 0.95
    assert abs(float(normal.mean())) < 0.4 and 0.7 < float(normal.std()) < 1.3
    wide = jax.scipy.special.logit(drawn(0, std=0.5).sigma) - 0.95
    np.testing.assert_allclose(wide, 0.5 * normal, atol=1e-4)  # logit of float32 sigmas


def test_the_blocks_preparation_and_the_rule_reach_the_model():
    given = {}

    def model(video, audio, **options):
        given.update(options)
        return jnp.zeros_like(video.latents), jnp.zeros_like(audio.latents)

    def prepare(block, index):
        raise AssertionError("only handed on")

    objective("own").errors(model, batch(), draws(0), GRID, prepare)
    assert given["prepare_block"] is prepare
    assert given["cross_timestep"] == "own" and given["isolated"] == (
        batch().video.reference.shape[1],
        batch().audio.reference.shape[1],
    )
    objective("other", isolate=False).errors(model, batch(), draws(0), GRID)
    assert given["prepare_block"] is None and given["isolated"] == (0, 0)
    assert given["cross_timestep"] == "other"
