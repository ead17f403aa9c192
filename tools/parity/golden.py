"""Reading golden files: their settings, inputs, weights and expectations."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.tokens import Layout
from justdubit_jax.models.transformer import Modality, Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import SafetensorsCheckpoint, open_safetensors
from justdubit_jax.weights.load import load_weights
from justdubit_jax.weights.parts import build_part

Tensors = dict[str, np.ndarray]

# LTX-2's, which the token vectors are made with; their files bring no checkpoint.
LAYOUT = Layout(
    frames_per_latent=8,
    pixels_per_latent=32,
    video_channels=128,
    audio_channels=8,
    audio_bins=16,
    sample_rate=16_000,
    samples_per_mel=160,
    mels_per_latent=4,
)


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file: its settings, and what is expected. Inputs and weights are read when used."""

    path: Path
    meta: Mapping[str, Any]
    expect: Tensors
    dtype: Any = jnp.float32  # in which models are run; what is expected is of float32

    @classmethod
    def read(cls, path: Path, dtype: Any = jnp.float32) -> "Golden":
        """Raises InputError if the file is not readable."""
        try:
            with open_tensors(path, "golden file") as file:
                meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            return cls(path, meta, read(path, "expect."), dtype)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: `meta` is not JSON: {error}") from None

    def cast(self, x: Any) -> Any:
        """A model's input in the dtype in which models are run."""
        return jnp.asarray(x).astype(self.dtype)

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """Its own inputs, over those of `meta.inputs_file`."""
        return {**read(self.beside("inputs_file"), "input."), **read(self.path, "input.")}

    @functools.cached_property
    def weights(self) -> SafetensorsCheckpoint:
        """The checkpoint `meta.weights_file`, else the file itself."""
        return open_safetensors([self.beside("weights_file")])

    def beside(self, key: str) -> Path:
        """The file that a key of `meta` names (a remark may follow the name), else this one."""
        path = self.path.with_name(self.meta.get(key, self.path.name).split()[0])
        if not path.is_file():
            raise InputError(f"meta.{key}: {path}: no such file")
        return path


def read(path: Path, prefix: str) -> Tensors:
    """The tensors of a file whose names start with `prefix`, without it."""
    with open_tensors(path, "golden file") as file:
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def load(golden: Golden, part: keys.Part) -> Any:
    source = golden.weights
    model = build_part(part, source.config, source.shapes)
    return load_weights(source, part, model, golden.dtype)


def load_transformer(golden: Golden, adapted: bool = False) -> Transformer:
    """The transformer; if adapted, with LoRA layers as `meta` has them, not yet filled."""
    config = TransformerConfig.from_metadata(golden.weights.config)

    def build() -> Transformer:
        model = Transformer(config)
        if adapted:
            rank, alpha = golden.meta["rank"], golden.meta["alpha"]
            targets = tuple(golden.meta["target_modules"])
            lora.attach(model, lora.LoRAConfig(rank, alpha, 0.0, targets))
        return model

    model = nnx.eval_shape(build)
    return load_weights(golden.weights, keys.TRANSFORMER, model, golden.dtype)


def modality(golden: Golden, name: str, text_mask: bool) -> Modality:
    """Raises InputError unless a sample's timesteps are zeros, then its sigma."""
    fields = ("latent", "positions", "context", "sigma", "timesteps")
    latent, positions, context, sigma, timesteps = (golden.inputs[f"{name}.{f}"] for f in fields)
    clean = (timesteps == 0).sum(-1).astype(np.int32)
    expected = np.where(np.arange(latent.shape[1]) < clean[:, None], 0, sigma[:, None])
    if (timesteps != expected).any():
        raise InputError(f"input.{name}.timesteps: expected zeros, then input.{name}.sigma")
    length = context_len(golden, name) if text_mask else None
    return Modality(golden.cast(latent), positions, context, sigma, clean, length)


def references(golden: Golden, name: str) -> int:
    """How many reference tokens stand before the targets."""
    reference = golden.inputs[f"{name}.target"] == 0
    count = int(reference.sum())
    if reference[count:].any():
        raise InputError(
            f"input.{name}.target is not contiguous: a reference token stands behind a target "
            "token, expected [reference | target]"
        )
    return count


def context_len(golden: Golden, name: str) -> Any:
    mask = golden.inputs.get(f"{name}.context_mask")
    return None if mask is None else lengths(mask, f"input.{name}.context_mask")


def lengths(mask: np.ndarray, name: str) -> Any:
    """Ones at the start of every row; raises InputError where one follows a zero."""
    counts = (mask != 0).sum(-1).astype(np.int32)
    if ((mask != 0) != (np.arange(mask.shape[-1]) < counts[..., None])).any():
        raise InputError(f"{name} is not a length: expected ones, then zeros, in every row")
    return counts
