"""The training's settings: what the published config asks for, and what is refused."""

import re

import jax.numpy as jnp
import pytest
from helpers.commands import REPO
from helpers.published import published

from justdubit_jax.errors import InputError
from justdubit_jax.training import settings
from justdubit_jax.training.objective import MaskLoss, SigmaSampling
from justdubit_jax.training.settings import Wandb

MASKS = "training_strategy.mask_config"


def read(*flags):
    return settings.read(published(*flags))


def test_the_published_run():
    run = read()
    assert (run.lora.rank, run.lora.alpha, run.lora.dropout) == (128, 128, 0)
    assert run.mask_loss == MaskLoss(1.0, 0.1, 0.1, False)
    assert run.sampling == SigmaSampling("shifted_logit_normal")
    assert (run.steps, run.optimizer.schedule.steps, run.batch_size) == (2000, 2000, 1)
    assert (run.dtype, run.export_dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert (run.cross_timestep, run.quantization, run.load_checkpoint) == (None, None, None)
    assert (run.data_root, run.wandb, run.mesh, run.seed) == (None, None, (-1, 1), 42)


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("model.cross_timestep=other", "cross_timestep", "other"),
        ("model.cross_timestep=own", "cross_timestep", "own"),
        ("model.cross_timestep=other_gate", "cross_timestep", "other_gate"),
        ("acceleration.mixed_precision_mode=no", "dtype", jnp.dtype("float32")),
        ("acceleration.quantization=int4-quanto", "quantization", "nf4"),
        ("checkpoints.precision=float32", "export_dtype", jnp.dtype("float32")),
        ("optimization.enable_gradient_checkpointing=auto", "remat", None),
        ("optimization.enable_gradient_checkpointing=False", "remat", "none"),
        ("optimization.enable_gradient_checkpointing=True", "remat", "full"),
        ("optimization.enable_gradient_checkpointing=offload", "remat", "offload"),
        (f"data.preprocessed_data_root={REPO}", "data_root", REPO),
        (f"{MASKS}.use_masked_loss=False", "mask_loss", None),
    ],
)
def test_a_key_and_what_it_sets(flag, field, value):
    assert getattr(read(flag), field) == value


def test_masks_are_read_only_for_the_masked_loss():
    assert read().folders["masks"] == "masks"
    assert "masks" not in read(f"{MASKS}.use_masked_loss=False").folders


def test_uniform_noise_levels_within_limits():
    flow = "flow_matching.timestep_sampling_"
    uniform = read(f"{flow}mode=uniform", f"{flow}params=(('min_value', 0.5),)").sampling
    assert uniform == SigmaSampling("uniform", min_value=0.5)
    for pairs in ("(('std', 1),)", "(('min_value', 0.7), ('max_value', 0.2))"):
        with pytest.raises(InputError, match=r"timestep_sampling_params is .*, expected .*max_val"):
            read(f"{flow}mode=uniform", f"{flow}params={pairs}")


def test_weights_and_biases():
    chosen = read("wandb.enabled=True", "wandb.tags=('a', 'b')", "wandb.entity=us").wandb
    assert chosen == Wandb("justdubit", "us", ("a", "b"), True)
    nobody = read("wandb.enabled=True", "wandb.log_validation_videos=False").wandb
    assert nobody == Wandb("justdubit", None, (), False)


def test_moments_of_bytes_have_no_other_dtype():
    eight = "optimization.optimizer_type=adamw8bit"
    assert read(eight).optimizer.kind == "adamw8bit"
    with pytest.raises(InputError, match="first_moment_dtype is 'bfloat16', expected 'float32': "):
        read(eight, "optimization.first_moment_dtype=bfloat16")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.model_path=nowhere", "model_path is 'nowhere', expected a file or folder"),
        ("model.model_path=", "model.model_path is not given, expected --config.model.model_path="),
        ("model.load_checkpoint=nowhere", "load_checkpoint is 'nowhere', expected a file or fol"),
        ("model.training_mode=full", "training_mode is 'full', expected 'lora': 19B"),
        ("model.cross_timestep=None", "is 'None', expected one of auto, own, other, other_gate"),
        ("training_strategy.name=text_to_video", "is 'text_to_video', expected 'justdubit'"),
        ("training_strategy.with_audio=False", "with_audio is False, expected True: dubbing "),
        ("training_strategy.first_frame_conditioning_p=1.1", "is 1.1, expected a number from 0"),
        ("acceleration.mixed_precision_mode=fp16", "is 'fp16', expected one of bf16, no"),
        ("acceleration.quantization=int2-quanto", "one of int8, fp8, nf4, int8-quanto"),
        ("acceleration.load_text_encoder_in_8bit=True", "is True, expected False: not needed"),
        ("hub.push_to_hub=True", "hub.push_to_hub is True, expected False: not supported yet"),
        ("optimization.optimizer_type=adam", "expected one of adamw, adamw8bit"),
        ("optimization.first_moment_dtype=float16", "expected one of float32, bfloat16"),
        ("optimization.scheduler_type=cosin", "expected one of constant, linear, cosine, "),
        ("optimization.scheduler_params=(('eta_min', 0.1),)", "unknown 'eta_min'"),
        ("optimization.warmup_steps=-1", "expected a whole number from 0 to 2000"),
        ("optimization.warmup_steps=2001", "is 2001, expected a whole number from 0 to 2000"),
        ("optimization.steps=0", "optimization.steps is 0, expected a whole number of at least 1"),
        ("optimization.ema_decay=1.0", "expected a number from 0 to below 1"),
        ("optimization.learning_rate=-1.0", "expected a number of at least 0"),
        ("optimization.learning_rate=nan", "learning_rate is nan, expected a number of at least"),
        ("optimization.max_grad_norm=inf", "max_grad_norm is inf, expected a number of at least"),
        ("optimization.learning_rate_groups=(1, 2)", "is (1, 2), expected pairs"),
        ("optimization.learning_rate_groups=(('ff', -1),)", "expected rates of at least 0"),
        ("optimization.learning_rate_groups=(('(ff', 1e-6),)", "regexes, but '(ff' is none"),
        (
            "optimization.enable_gradient_checkpointing=no",
            "one of auto, True, False, attention, keys, queries, offload",
        ),
        ("lora.rank=0", "lora.rank is 0, expected a whole number of at least 1"),
        ("lora.dropout=1.0", "lora.dropout is 1.0, expected a number from 0 to below 1"),
        ("lora.target_modules=()", "target_modules is (), expected names of modules, or there is"),
        ("lora.target_modules=(1,)", "lora.target_modules is (1,), expected a tuple of texts"),
        (f"{MASKS}.mask_loss_weight=nan", "mask_loss_weight is nan, expected a number of at least"),
        (f"{MASKS}.mask_threshold=1.5", "mask_threshold is 1.5, expected a number from 0 to 1"),
        ("mesh.fsdp=0", "mesh.fsdp is 0, expected a whole number of at least 1"),
        ("data.num_dataloader_workers=-1", "workers is -1, expected a whole number of at least 0"),
        ("checkpoints.keep_last_n=-2", "keep_last_n is -2, expected a whole number of at least -1"),
        ("checkpoints.keep_last_n=0", "keep_last_n is 0, expected -1 to keep all, or at least 1"),
        ("checkpoints.precision=float16", "is 'float16', expected one of bfloat16, float32"),
        ("flow_matching.timestep_sampling_mode=other", "one of shifted_logit_normal, uniform"),
        ("seed=-1", "config: seed is -1, expected a whole number from 0 to 4294967295"),
    ],
)
def test_what_is_refused(flag, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(flag)


def test_a_picture_without_any_weight_is_refused():
    none = f"{MASKS}.mask_loss_weight=0.0", f"{MASKS}.background_loss_weight=0.0"
    with pytest.raises(InputError, match=r"mask_loss_weight is 0\.0, expected a number above"):
        read(*none)
    assert read(none[0]).mask_loss == MaskLoss(0.0, 0.1, 0.1, False)
