"""LoRA adapters in a model: where they go, how they start, how a model is split and merged."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax.errors import InputError
from justdubit_jax.lora.dialects import module_name
from justdubit_jax.models.layers import Linear, LoRA
from justdubit_jax.models.transformer import PrepareBlock, Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.weights.keys import TRANSFORMER

# A and B of every adapted linear by parameter path ("blocks.video.attn1.to_q.lora.A"): arrays, or
# their shapes, or gradients.
Adapters = dict[str, Any]


class Weights(NamedTuple):
    """All arrays of an adapted model: what is trained, and the rest as `split` gives it.

    Arrays, or their shapes; with a model's structure they are a model again (`merge`).
    """

    adapters: Adapters
    frozen: Any


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Rank and scale (alpha / rank) of the adapters, and the modules that get one."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


def attach(model: nnx.Module, config: LoRAConfig) -> dict[str, list[str]]:
    """Give every targeted Linear of a Transformer its adapter; returns target -> module names.

    A target matches as in PEFT, on the reference's module names: `name == t or
    name.endswith("." + t)`. Call it under nnx.eval_shape and fill the result with `init` or
    `read_file`. Raises InputError if a target matches nothing, or only some of the blocks.
    """
    matched: dict[str, list[str]] = {target: [] for target in config.target_modules}
    for path, linear in _linears(model):
        names = _module_names(path, linear)
        for target, names_of_target in matched.items():
            hits = [n for n in names if n == target or n.endswith("." + target)]
            if 0 < len(hits) < len(names):
                raise InputError(
                    f"{target!r} matches {hits[0]} but not {names[-1]}; "
                    "expected the same module in all blocks"
                )
            names_of_target += hits
            if hits and linear.lora is None:
                *stack, d_out, d_in = linear.weight.shape
                a = jnp.zeros((*stack, config.rank, d_in))
                b = jnp.zeros((*stack, d_out, config.rank))
                linear.lora = LoRA(a, b, config.alpha / config.rank, config.dropout)
    for target, names in matched.items():
        if not names:
            raise InputError(f"{target!r} matches no module of the model")
    return matched


def adapted_model(
    config: TransformerConfig, adapter: LoRAConfig
) -> tuple[Transformer, dict[str, list[str]]]:
    """An abstract transformer with its adapters, and which modules each target matched.

    Raises InputError as `attach` does.
    """
    matched: dict[str, list[str]] = {}

    def build() -> Transformer:
        model = Transformer(config)
        matched.update(attach(model, adapter))
        return model

    return nnx.eval_shape(build), matched


def init(shapes: Mapping[str, Any], key: jax.Array) -> Adapters:
    """PEFT's start: A uniform in ±1/sqrt(in), B zero, so the adapted model equals the base."""
    adapters = {}
    for i, (path, leaf) in enumerate(sorted(shapes.items())):
        if path.endswith(".A"):
            bound = 1 / np.sqrt(leaf.shape[-1])
            leaf_key = jax.random.fold_in(key, i)
            adapters[path] = jax.random.uniform(leaf_key, leaf.shape, jnp.float32, -bound, bound)
        else:
            adapters[path] = jnp.zeros(leaf.shape, jnp.float32)
    return adapters


def split(model: Transformer) -> tuple[nnx.GraphDef, Adapters, Any]:
    """A model as (structure, adapters by path, the rest as pure arrays), for `merge`."""
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)
    flat = nnx.to_flat_state(nnx.as_pure(adapters))
    return graphdef, {".".join(map(str, path)): leaf for path, leaf in flat}, nnx.as_pure(rest)


def merge(graphdef: nnx.GraphDef, adapters: Adapters, rest: Any) -> Transformer:
    """The inverse of `split`; runs inside jit and under gradients."""
    flat = [
        (tuple(int(p) if p.isdigit() else p for p in path.split(".")), leaf)
        for path, leaf in adapters.items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), rest)


def seed_all(model: Transformer, key: jax.Array) -> PrepareBlock:
    """Seed a Transformer's dropout outside the blocks; returns its `prepare_block`, for inside."""
    outside, inside = jax.random.split(key)
    seed_dropout(model.video, jax.random.fold_in(outside, 0))
    seed_dropout(model.audio, jax.random.fold_in(outside, 1))
    return lambda block, index: seed_dropout(block, jax.random.fold_in(inside, index))


def seed_dropout(block: nnx.Module, key: jax.Array) -> None:
    """Give every adapter of a (transient) block its own dropout key."""
    for i, (_, linear) in enumerate(_linears(block)):
        if linear.lora is not None:
            linear.lora.dropout_key = jax.random.fold_in(key, i)


def module_names(model: Transformer) -> list[str]:
    """The reference's names of all linear modules that an adapter could stand in."""
    return [name for path, linear in _linears(model) for name in _module_names(path, linear)]


def _linears(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            yield ".".join(map(str, path)), module


def _module_names(path: str, linear: Linear) -> list[str]:
    """The reference's names of a linear, one for each block."""
    stacked = TRANSFORMER.is_stacked(f"{path}.weight")
    layers = range(linear.weight.shape[0]) if stacked else [None]
    return [module_name(path, layer) for layer in layers]
