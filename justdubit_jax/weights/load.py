"""Checkpoints into models: strict, lazy, one tensor at a time.

`open_checkpoint` takes an LTX-2 `.safetensors` file, or the folder that tools/convert_weights.py
makes of one; `load` fills a model with a part of it. Nothing is skipped in silence: missing,
unexpected and mis-shaped tensors of a part are gathered and raised once.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.models import quant
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from justdubit_jax.models.connector import ConnectorConfig, Connectors
from justdubit_jax.models.gemma import Gemma, GemmaConfig
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.quant import Scheme
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.models.video_vae import (
    VideoDecoder,
    VideoDecoderConfig,
    VideoEncoder,
    VideoEncoderConfig,
)
from justdubit_jax.models.vocoder import Vocoder, VocoderConfig
from justdubit_jax.weights import arrays, keys
from justdubit_jax.weights.arrays import Target
from justdubit_jax.weights.keys import Part

Shapes = Mapping[str, tuple[int, ...]]
Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# These small tables are float32 in the published files and stay so in a bfloat16 run: they are
# added to the timestep's modulation, which is computed in float32.
_FLOAT32 = ("{}scale_shift_table",)


@dataclasses.dataclass(frozen=True)
class SafetensorsCheckpoint:
    """One or more safetensors files read as one; tensors are read when asked for."""

    paths: tuple[Path, ...]
    config: dict[str, Any]
    shapes: Shapes
    _file_of: Mapping[str, Path]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str, arrays.Index], np.ndarray]]:
        """A function from key and slices to an array; files stay open inside the context."""
        with contextlib.ExitStack() as stack:
            handles = {p: stack.enter_context(safe_open(p, framework="numpy")) for p in self.paths}
            yield lambda key, index: handles[self._file_of[key]].get_slice(key)[index]


@dataclasses.dataclass(frozen=True)
class OrbaxCheckpoint:
    """A folder that tools/convert_weights.py wrote: config.json and one Orbax tree per part."""

    path: Path
    config: dict[str, Any]
    shapes: Shapes


Checkpoint = SafetensorsCheckpoint | OrbaxCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open an LTX-2 checkpoint: a `.safetensors` file or a converted folder.

    Raises InputError if it is neither, or carries no `config` metadata.
    """
    path = Path(path)
    if path.is_dir():
        listing = path / "checkpoint.json"
        if not listing.is_file():
            raise InputError(f"{path}: not a converted checkpoint: checkpoint.json is missing")
        content = json.loads(listing.read_text())
        shapes = {key: tuple(shape) for key, shape in content["shapes"].items()}
        return OrbaxCheckpoint(path, content["config"], shapes)
    checkpoint = open_safetensors([path])
    if not checkpoint.config:
        raise InputError(f"{path}: no `config` in the file's metadata; is it an LTX-2 checkpoint?")
    if unknown := unowned(checkpoint.shapes):
        raise InputError(f"{path}: {len(unknown)} tensors of no known part ({_some(unknown)})")
    return checkpoint


def unowned(shapes: Shapes) -> list[str]:
    """Keys that belong to no part and are not known to be unused."""
    return [key for key in shapes if not keys.owners(key) and key not in keys.UNUSED]


def open_gemma(folder: Path) -> SafetensorsCheckpoint:
    """Open a Hugging Face Gemma 3 folder: config.json and its *.safetensors shards."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: not a Gemma 3 folder: config.json: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [folder / name for name in files]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: not a Gemma 3 folder: no *.safetensors")
    checkpoint = open_safetensors(paths)
    unknown = [
        key
        for key in checkpoint.shapes
        if not keys.GEMMA.path(key) and not keys.matches_any(key, keys.GEMMA_UNUSED)
    ]
    if unknown:
        raise InputError(f"{folder}: {len(unknown)} tensors not of Gemma 3 ({_some(unknown)})")
    return dataclasses.replace(checkpoint, config=config)


def open_safetensors(paths: Sequence[Path]) -> SafetensorsCheckpoint:
    """Read the headers of safetensors files; raises InputError with the name of a bad one."""
    config, shapes, file_of = {}, {}, {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a .safetensors file")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    shapes[key] = tuple(file.get_slice(key).get_shape())
                    file_of[key] = path
            config |= json.loads(metadata.get("config", "{}"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a readable safetensors file: {error}") from None
    return SafetensorsCheckpoint(tuple(paths), config, shapes, file_of)


def build(part: Part, config: dict[str, Any], shapes: Shapes) -> Any:
    """The part's abstract model for a checkpoint's `config`; `shapes` tell what no key says."""
    return nnx.eval_shape(lambda: _BUILDERS[part.name](config, shapes))


def _connectors(config: dict[str, Any], shapes: Shapes) -> Connectors:
    key = "text_embedding_projection.aggregate_embed.weight"
    if key not in shapes:
        raise InputError(f"checkpoint: {key} is missing")
    return Connectors(ConnectorConfig.from_metadata(config, text_width=shapes[key][1]))


_BUILDERS: dict[str, Callable[[dict[str, Any], Shapes], nnx.Module]] = {
    "transformer": lambda c, _: Transformer(TransformerConfig.from_metadata(c)),
    "connectors": _connectors,
    "video_encoder": lambda c, _: VideoEncoder(VideoEncoderConfig.from_metadata(c)),
    "video_decoder": lambda c, _: VideoDecoder(VideoDecoderConfig.from_metadata(c)),
    "audio_encoder": lambda c, _: AudioEncoder(AudioVAEConfig.from_metadata(c)),
    "audio_decoder": lambda c, _: AudioDecoder(AudioVAEConfig.from_metadata(c)),
    "vocoder": lambda c, _: Vocoder(VocoderConfig.from_metadata(c)),
    "gemma": lambda c, _: Gemma(GemmaConfig.from_folder_config(c)),
}


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The base weights of a model (abstract or not) by dotted path."""
    flat = nnx.to_flat_state(nnx.state(model, Frozen))
    return {".".join(map(str, path)): variable for path, variable in flat}


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """What is wrong between a part and a checkpoint, as checkpoint keys."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        fields = dataclasses.asdict(self).items()
        return "; ".join(f"{len(v)} {k} ({_some(v)})" for k, v in fields if v)


def expected(part: Part, model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Checkpoint key -> shape of every tensor that the model reads."""
    wanted = {}
    for path, variable in parameters(model).items():
        shape = tuple(variable.shape)
        if part.is_stacked(path):
            wanted |= {part.key(path, layer): shape[1:] for layer in range(shape[0])}
        else:
            wanted[part.key(path)] = shape
    return wanted


def compare(part: Part, model: nnx.Module, shapes: Shapes) -> Mismatch:
    """Check a part's names and shapes against a checkpoint's, both ways."""
    wanted = expected(part, model)
    owned = [key for key in shapes if _owns(part, key)]
    return Mismatch(
        missing=[key for key in wanted if key not in shapes],
        unexpected=[key for key in owned if key not in wanted],
        misshaped=[
            f"{key} {list(shapes[key])}, expected {list(shape)}"
            for key, shape in wanted.items()
            if key in shapes and tuple(shapes[key]) != shape
        ],
    )


def load[Model: nnx.Module](
    checkpoint: Checkpoint,
    part: Part,
    model: Model,
    dtype: DTypeLike | None,
    shardings: Shardings | None = None,
    scheme: Scheme | None = None,
) -> Model:
    """A copy of an abstract model with its base weights read from the checkpoint.

    `dtype` None keeps the file's. `shardings(path, shape)` places every array, by default on
    the default device; each process reads its own slices, one block at a time. With `scheme` the
    linears of a Transformer's blocks are stored so (models/quant.py), and never whole in `dtype`.
    Variables that are not base weights (LoRA) stay as they are. Raises InputError naming every
    mismatch.
    """
    if mismatch := compare(part, model, checkpoint.shapes):
        where = checkpoint.path if isinstance(checkpoint, OrbaxCheckpoint) else checkpoint.paths[0]
        raise InputError(f"{where}: {part.name} does not fit: {mismatch}")
    stored = model if scheme is None else quant.quantize(model, scheme)
    targets = _targets(part, model, stored, dtype, shardings, scheme)
    if isinstance(checkpoint, OrbaxCheckpoint):
        return _with_arrays(stored, _restore(checkpoint.path / part.name, targets))
    with checkpoint.reader() as read:

        def block(path: str, layer: int | None) -> jax.Array:
            return arrays.from_slices(targets[path], functools.partial(read, part.key(path, layer)))

        return _with_arrays(stored, arrays.fill(targets, block))


def random[Model: nnx.Module](
    part: Part,
    model: Model,
    key: jax.Array,
    dtype: DTypeLike,
    shardings: Shardings | None = None,
    scheme: Scheme | None = None,
) -> Model:
    """`load` without a checkpoint: random base weights, made on the devices block by block.

    For measurements at full size: activations stay finite, and nothing else is meant by them.
    """
    stored = model if scheme is None else quant.quantize(model, scheme)
    targets = _targets(part, model, stored, dtype, shardings, scheme)
    order = {path: i for i, path in enumerate(targets)}

    def block(path: str, layer: int | None) -> jax.Array:
        block_key = jax.random.fold_in(jax.random.fold_in(key, order[path]), layer or 0)
        return arrays.drawn(targets[path], path, block_key)

    return _with_arrays(stored, arrays.fill(targets, block))


def _targets(
    part: Part,
    model: nnx.Module,
    stored: nnx.Module,
    dtype: DTypeLike | None,
    shardings: Shardings | None,
    scheme: Scheme | None,
) -> dict[str, Target]:
    """What becomes of each parameter of `model` in `stored`, its copy that may be quantized."""
    default = jnp.zeros(()).sharding  # on jax.default_device
    place = shardings or (lambda path, shape: default)
    names = parameters(stored)
    targets = {}
    for path, variable in parameters(model).items():
        plain = path in names
        own = (path,) if plain else (f"{path}.values", f"{path}.scales")
        small_table = dtype is not None and keys.matches_any(path, _FLOAT32)
        targets[path] = Target(
            shape=tuple(variable.shape),
            stacked=part.is_stacked(path),
            # Encoded from the file's numbers, not from rounded ones.
            dtype=(jnp.float32 if small_table else dtype) if plain else None,
            # Read as the bytes will lie, since a row is encoded by itself.
            sharding=place(own[0], tuple(variable.shape)),
            scheme=None if plain else scheme,
            places={name: place(name, tuple(names[name].shape)) for name in own},
        )
    return targets


def _with_arrays[Model: nnx.Module](model: Model, values: Mapping[str, Any]) -> Model:
    model = nnx.clone(model)  # variables are shared otherwise: a second load would change both
    for path, variable in parameters(model).items():
        variable.set_value(values[path])
    return model


def abstract[Model: nnx.Module](
    model: Model, dtype: DTypeLike, shardings: Shardings, scheme: Scheme | None
) -> Model:
    """What `load` will make of an abstract model: shapes, types and shardings."""
    stored = model if scheme is None else quant.quantize(model, scheme)
    plain = parameters(model)
    values = {}
    for path, variable in parameters(stored).items():
        shape, own = tuple(variable.shape), variable.get_value().dtype
        if path in plain:
            own = jnp.float32 if keys.matches_any(path, _FLOAT32) else dtype
        values[path] = jax.ShapeDtypeStruct(shape, own, sharding=shardings(path, shape))
    return _with_arrays(stored, values)


def _restore(folder: Path, targets: Mapping[str, Target]) -> dict[str, jax.Array]:
    """Plain arrays at once; those to be quantized one after the other, to hold one stack."""
    plain = {path for path, target in targets.items() if target.scheme is None}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved: Any = checkpointer.metadata(folder.absolute()).item_metadata

        def restore(paths: Collection[str]) -> dict[str, jax.Array]:
            like = {
                path: jax.ShapeDtypeStruct(
                    targets[path].shape,
                    targets[path].dtype or saved[path].dtype,
                    sharding=targets[path].sharding,
                )
                for path in paths
            }
            arguments = ocp.args.PyTreeRestore(
                item=like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            return checkpointer.restore(folder.absolute(), args=arguments)

        values = restore(plain)
        for path in [path for path in targets if path not in plain]:  # as every process does it
            target = targets[path]
            values |= arrays.fill_one(  # no name for the stack: it goes before the next one comes
                target, functools.partial(arrays.from_stack, target, restore({path})[path])
            )
    return values


def _owns(part: Part, key: str) -> bool:
    if part.name in keys.PARTS:
        return part.name in keys.owners(key)
    return part.path(key) is not None


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
