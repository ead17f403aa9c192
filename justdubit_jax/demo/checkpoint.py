"""Toy LTX-2 checkpoints: every part, key and config section of the real files, at toy width."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from justdubit_jax.files import save_safetensors
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected
from justdubit_jax.weights.parts import TEXT_PROJECTIONS, build_part

Flavour = Literal["2.0", "2.3"]  # of which file it is the toy: the 19B's or the 22B's

_TRANSFORMER = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 16,
    "attention_type": "default",
    "caption_channels": 64,
    "cross_attention_dim": 64,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 16,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "num_attention_heads": 4,
    "num_embeds_ada_norm": 1000,
    "num_layers": 3,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "out_channels": 16,
    "upcast_attention": False,
    "use_linear_projection": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "causal_temporal_positioning": True,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "audio_out_channels": 128,
    "audio_cross_attention_dim": 32,
    "audio_positional_embedding_max_pos": [20],
    "av_cross_ada_norm": True,
    "use_embeddings_connector": True,
    "connector_attention_head_dim": 16,
    "connector_num_attention_heads": 4,
    "connector_num_layers": 2,
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_learnable_registers": 128,
    "connector_norm_output": True,
    "use_middle_indices_grid": True,
    "rope_type": "split",
    "frequencies_precision": "float64",
}


def _blocks(compress: list[str], layers: int, options: dict[str, Any]) -> list[Any]:
    """Residual blocks around each compression or expansion, as in the 19B's block lists."""
    residual = ["res_x", {"num_layers": layers}]
    return [residual, *(b for name in compress for b in ([name, options], residual))]


_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "encoder_blocks": _blocks(
        ["compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res"],
        1,
        {"multiplier": 2},
    ),
    "decoder_blocks": _blocks(["compress_all"] * 3, 1, {"residual": True, "multiplier": 2}),
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "normalize_latent_channels": False,
    "encoder_base_channels": 16,
    "decoder_base_channels": 8,
}

_AUDIO_VAE = {
    "preprocessing": {
        "audio": {"sampling_rate": 16000, "stereo": True, "causal_padding": 3},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
    "model": {
        "params": {
            "sampling_rate": 16000,
            "embed_dim": 8,
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                # The statistics have `ch` entries, one for each of the 8 x 16 latent values.
                "ch": 128,
                "ch_mult": [1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
}

_VOCODER = {
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "stereo": True,
    "upsample_rates": [6, 5, 2, 2, 2],
    "resblock_kernel_sizes": [3, 7, 11],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock": "1",
    "upsample_initial_channel": 32,
}

CONFIG = {
    "transformer": _TRANSFORMER,
    "vae": _VAE,
    "scheduler": {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000},
    "audio_vae": _AUDIO_VAE,
    "vocoder": _VOCODER,
}

# What LTX-2.3 has instead. Contexts are as wide as the streams that read them.
_TRANSFORMER_23 = {
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "connector_learnable_registers_std": 1,
    "caption_proj_before_connector": True,
    "audio_connector_attention_head_dim": 8,
    "audio_connector_num_attention_heads": 4,
    "cross_attention_adaln": True,
    "text_encoder_norm_type": "per_token_rms",
}
_RESIDUAL = ["res_x", {"num_layers": 1}]
_DECODER_23 = [
    *(_RESIDUAL, ["compress_space", {"multiplier": 2}]),
    *(_RESIDUAL, ["compress_time", {"multiplier": 2}]),
    *(_RESIDUAL, ["compress_all", {"multiplier": 1}]),
    *(_RESIDUAL, ["compress_all", {"multiplier": 2}]),
    _RESIDUAL,
]
_GENERATOR_23 = {
    "resblock": "AMP1",
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
_VOCODER_23 = {
    "vocoder": _GENERATOR_23
    | {
        "upsample_initial_channel": 64,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": _GENERATOR_23
    | {
        "upsample_initial_channel": 32,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}
CONFIG_23 = CONFIG | {
    "transformer": _TRANSFORMER | _TRANSFORMER_23,
    "vae": _VAE | {"decoder_blocks": _DECODER_23, "spatial_padding_mode": "zeros"},
    "vocoder": _VOCODER_23,
}

# By flavour: version, config, and the tensors that no module reads.
_FLAVOURS: dict[Flavour, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "2.0": ("2.0.0", CONFIG, {key: (_VAE["latent_channels"],) for key in keys.UNUSED_STATISTICS}),
    "2.3": ("2.3.0", CONFIG_23, {keys.UNUSED_FOURIER_ROWS: (514, 1, 512)}),
}


def make_checkpoint(path: Path, text_width: int, seed: int = 0, flavour: Flavour = "2.0") -> Path:
    """Write the checkpoint with random weights for a text encoder of that width x hidden states."""
    rng = np.random.default_rng(seed)
    version, config, unused = _FLAVOURS[flavour]
    projection = {key: (0, text_width) for key in TEXT_PROJECTIONS}
    shapes = dict(unused)
    for part in keys.PARTS.values():
        shapes |= expected(part, build_part(part, config, projection))
    tensors = {
        key: _random(rng, key, shape).astype(
            np.float32 if key.endswith("scale_shift_table") else jnp.bfloat16
        )
        for key, shape in sorted(shapes.items())
    }
    metadata = {"config": json.dumps(config), "model_version": version}
    save_safetensors(path, tensors, metadata)
    return path


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep activations near 1: He-like matrices, norms of 1, small biases."""
    if key.endswith(("std-of-means", "norm.weight")):
        return np.ones(shape, np.float32)
    if key.endswith("mean-of-means"):
        return np.zeros(shape, np.float32)
    scale = 0.02 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    if "scale_shift_table" in key:
        scale = 0.1
    return rng.standard_normal(shape).astype(np.float32) * scale
