"""Is this machine right? Compare justdubit_jax with golden vectors of the PyTorch reference.

    python tools/verify_parity.py GOLDEN_DIR [--only NAME] [--out DIR]

A golden file is a .safetensors file with weights under a checkpoint's keys, `input.*` and
`expect.*` tensors and, in its metadata, `config` and `meta` (settings, and the files that hold
shared weights and inputs). Its kind is `meta.component`, or the start of its name. Everything is
computed in float32 at the highest matmul precision, on JAX's default device.

Exit code 0: every error is within its limit. 1: one is not, or a file could not be computed (the
others still are). 2: bad input. With --out, DIR/FILE.safetensors holds what was computed under the
expectations' names, shapes and types.

To support another kind, or another list of tensors: write its function, enter it in CASES with its
limit in LIMITS, and the list in SUPPORTED.
"""

import argparse
import collections
import dataclasses
import functools
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors import SafetensorError, safe_open

from justdubit_jax import cli, keys, lora, objective, optim, weights
from justdubit_jax import tokens as layout
from justdubit_jax.errors import InputError
from justdubit_jax.files import save_safetensors
from justdubit_jax.models import mel
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from justdubit_jax.models.connector import ConnectorConfig, Connectors
from justdubit_jax.models.gemma import Gemma, GemmaConfig
from justdubit_jax.models.layers import frequency_grid, rotary_table
from justdubit_jax.models.transformer import Modality, Transformer, TransformerConfig
from justdubit_jax.models.video_vae import (
    VideoDecoder,
    VideoDecoderConfig,
    VideoEncoder,
    VideoEncoderConfig,
)
from justdubit_jax.models.vocoder import Vocoder, VocoderConfig

# Which tensors are asked for: kind -> regex of the whole name after "expect.". What is in no list
# exists only inside the reference, or for options that no LTX-2 checkpoint sets.
LISTS = {
    "foundation": {
        "audio_mel": r"log_mel_16k",
        "audio_vae": r"(encode|decode)\.\w+|encode_waveform\.latent",
        "gemma": r"hidden_states\.\d+",
        "cross_mask_19b": r"(per_token_cross\.)?(audio|video)_velocity",
        "lora_19b": r"(cross_mask\.)?(audio|video)_velocity",
        "train_19b": r".*",
        "text_19b": r"\w+\.(audio_context|video_context|mask)",
        "transformer_19b": r"((per_token_cross|no_text_mask)\.)?(audio|video)_velocity",
        "tokens": r"(video|audio)_tokens|video_positions\.fps\d+|audio_positions"
        r"|(audio|video)_latent_frames\w*|logit_normal_\w+|rope\.split\.pad\d\.(cos|sin)",
        "video_vae_20": r"(encode|decode|untiled_\w+)\.\w+",
        "vocoder_20": r"waveform\w*",
    },
    "sampling": {
        "transformer_19b": r"(stg|isolated)\.(audio|video)_velocity",
        "denoise_19b": r".*",
        "tokens": r"sigmas\.(default_tokens|latent\d)\.\w+|euler\.\w+"
        r"|guide\.(cfg|stg|multi_modal\w*)|to_\w+",
    },
    "ltx23": {
        "transformer_22b": r"((per_token_cross|no_text_mask|stg|isolated)\.)?"
        r"(audio|video)_velocity",
        "cross_mask_22b": r"(per_token_cross\.)?(audio|video)_velocity",
        "text_22b": r"\w+\.(audio_context|video_context|mask)",
        "video_vae_23": r"(encode|decode)\.\w+",
        "vocoder_23": r"waveform\w*",
    },
}
SUPPORTED = ("foundation",)

# Largest fair max |got - want| / max |want|: thirty times the reference's own float32 error
# against float64, and at least 2e-5. Integers must be equal.
LIMITS = {
    "audio_mel": 6e-4,
    "audio_vae": 2e-5,
    "cross_mask_19b": 2e-5,
    "gemma": 3e-5,
    "lora_19b": 2e-5,
    "text_19b": 2e-5,
    "tokens": 1e-6,
    "train_19b": 8e-5,
    "transformer_19b": 2e-5,
    "video_vae_20": 9e-4,  # narrow models, whose pixel norms amplify rounding
    "vocoder_20": 2e-5,
}
ROTARY_LIMIT = 1e-5  # absolute: float32 angles reach 15,708 rad
EXACT = re.compile(r"\w+_tokens|\w+_positions.*")  # of the kind "tokens"

# Largest fair (got - want) / learning rate of trained parameters, over a group: (max, rms). In the
# group of low rates it is mostly the rounding of values near 1.
PARAMETER_LIMITS = {"default": (0.05, 2e-3), "low": (0.3, 0.05)}

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file; the names of its tensors are without `input.` and `expect.`."""

    path: Path
    kind: str | None
    meta: Mapping[str, Any]
    expect: Tensors

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Raises InputError if the file is not readable."""
        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            expect = _read(path, "expect.")
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"not a readable golden file: {error}") from None
        name = meta.get("component", path.stem)
        kinds = {kind for kinds in LISTS.values() for kind in kinds if name.startswith(kind)}
        return cls(path, max(kinds, key=len, default=None), meta, expect)

    def asked_by(self, name: str) -> str | None:
        """The list that asks for a tensor."""
        for asked, kinds in LISTS.items():
            if self.kind in kinds and re.fullmatch(kinds[self.kind], name):
                return asked
        return None

    @functools.cached_property
    def inputs(self) -> Tensors:
        """Its own inputs, over those of `meta.inputs_file`."""
        return {**_read(self.beside("inputs_file"), "input."), **_read(self.path, "input.")}

    @functools.cached_property
    def weights(self) -> weights.SafetensorsCheckpoint:
        return weights.open_safetensors([self.beside("weights_file")])

    def beside(self, key: str) -> Path:
        """The file that a key of `meta` names (perhaps with a remark behind it), or this one."""
        name = self.meta.get(key, self.path.name).split()[0]
        path = self.path.parent / name
        if not path.is_file():
            raise InputError(f"meta.{key}: {path}: no such file")
        return path


def _read(path: Path, prefix: str) -> Tensors:
    """The tensors of a file whose names start with `prefix`, without it."""
    with safe_open(path, framework="numpy") as file:
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


# --- One function for each kind of file: its tensors, at least the wanted ones.


def _load[Model: nnx.Module](golden: Golden, part: keys.Part, build: Callable[[], Model]) -> Model:
    return weights.load(golden.weights, part, nnx.eval_shape(build), jnp.dtype("float32"))


_apply = nnx.jit(lambda model, *args: model(*args))


def audio_mel(golden: Golden, wanted: Collection[str]) -> Tensors:
    meta = golden.meta
    config = mel.MelConfig(meta["sample_rate"], meta["n_fft"], meta["hop"], meta["mel_bins"])
    return {"log_mel_16k": _log_mel(golden.inputs["waveform_16k"], config)}


_log_mel = jax.jit(mel.log_mel, static_argnums=1)


def audio_vae(golden: Golden, wanted: Collection[str]) -> Tensors:
    config = AudioVAEConfig.from_metadata(golden.weights.config)
    encoder = _load(golden, keys.AUDIO_ENCODER, lambda: AudioEncoder(config))
    decoder = _load(golden, keys.AUDIO_DECODER, lambda: AudioDecoder(config))
    found, inputs = {}, golden.inputs
    for name in wanted:
        task, _, what = name.partition(".")
        if task == "encode_waveform":
            mel_config = mel.MelConfig.from_metadata(golden.weights.config)
            found[name] = _apply(encoder, _log_mel(inputs["waveform_16k"], mel_config))
        elif task == "encode":
            found[name] = _apply(encoder, inputs["mel"][:, :, : _length(what)])
        else:
            found[name] = _apply(decoder, inputs["latent"][:, :, : _length(what)])
    return found


def _length(name: str) -> int | None:
    """17 of "f17", 12 of "f12_cropped_to_9"; None, which is everything, of other names."""
    match = re.match(r"[ft](\d+)", name)
    return int(match[1]) if match else None


def gemma(golden: Golden, wanted: Collection[str]) -> Tensors:
    config = GemmaConfig.from_folder_config(golden.weights.config)
    model = _load(golden, keys.GEMMA, lambda: Gemma(config))
    mask = golden.inputs["attention_mask"]
    states = _apply(model, golden.inputs["input_ids"], mask)
    return {f"hidden_states.{i}": state * mask[..., None] for i, state in enumerate(states)}


def text(golden: Golden, wanted: Collection[str]) -> Tensors:
    width = golden.weights.shapes["text_embedding_projection.aggregate_embed.weight"][1]
    config = ConnectorConfig.from_metadata(golden.weights.config, width)
    model = _load(golden, keys.CONNECTORS, lambda: Connectors(config))
    found = {}
    for prompt in sorted({name.rpartition(".")[0] for name in wanted}):
        states = np.moveaxis(golden.inputs[f"{prompt}.hidden_states"], -1, 0)
        mask = golden.inputs[f"{prompt}.attention_mask"]
        video, audio = _apply(model, states, mask)
        found |= {f"{prompt}.video_context": video, f"{prompt}.audio_context": audio}
        found[f"{prompt}.mask"] = np.ones_like(mask)  # registers fill the padding
    return found


def video_vae(golden: Golden, wanted: Collection[str]) -> Tensors:
    config = golden.weights.config
    encoder_config = VideoEncoderConfig.from_metadata(config)
    decoder_config = VideoDecoderConfig.from_metadata(config)
    encoder = _load(golden, keys.VIDEO_ENCODER, lambda: VideoEncoder(encoder_config))
    decoder = _load(golden, keys.VIDEO_DECODER, lambda: VideoDecoder(decoder_config))
    inputs, stride = golden.inputs, golden.meta["stride"]

    @functools.cache
    def decode(latent: str, frames: int | None) -> np.ndarray:
        return np.asarray(_apply(decoder, inputs[latent][:, :, :frames]))

    found = {}
    for name in wanted:
        task, _, what = name.partition(".")
        if task.endswith("encode"):
            video = inputs["tiled_space_video" if what == "space" else "video"]
            found[name] = _apply(encoder, video[:, :, : _length(what)])
            continue
        untiled = task == "untiled_decode"
        video = decode("tiled_latent" if untiled else "latent", _length(what))
        if what == "grid":
            thin = 2 * stride if untiled else stride
            found[name] = video[..., 1::thin, 2::thin]
        elif what == "statistics":
            x = video.astype(np.float64)
            found[name] = np.array([x.mean(), x.std(), np.abs(x).mean(), x.min(), x.max()])
        else:
            found[name] = video
    return found


def vocoder(golden: Golden, wanted: Collection[str]) -> Tensors:
    config = VocoderConfig.from_metadata(golden.weights.config)
    model = _load(golden, keys.VOCODER, lambda: Vocoder(config))
    return {name: _apply(model, golden.inputs[name.replace("waveform", "mel")]) for name in wanted}


def tokens(golden: Golden, wanted: Collection[str]) -> Tensors:
    meta, inputs = golden.meta, golden.inputs
    video, audio = inputs["video_latent"], inputs["audio_latent"]
    rates = dict(zip(meta["fps_names"], meta["shapes"]["fps"], strict=True))
    positions = {name: layout.video_positions(video.shape[2:], fps) for name, fps in rates.items()}
    # Lengths come from doubles: input.pixel_fps and input.durations are rounded to float32.
    doubles = {float(np.float32(fps)): fps for fps in rates.values()}
    clips = zip(inputs["pixel_frames"].tolist(), inputs["pixel_fps"].tolist(), strict=True)
    seconds = [frames / doubles.get(fps, fps) for frames, fps in clips]
    counts = inputs["sequence_lengths"].tolist()
    draws = zip(inputs["normal_samples"], counts, strict=True)
    audio_positions = layout.audio_positions(audio.shape[2])
    found = {
        "video_tokens": layout.video_tokens(video),
        "audio_tokens": layout.audio_tokens(audio),
        "audio_positions": np.tile(audio_positions, (len(audio), 1, 1, 1)),
        "audio_latent_frames": [layout.audio_latent_frames(s) for s in meta["durations"]],
        "audio_latent_frames_of_video": [layout.audio_latent_frames(s) for s in seconds],
        "video_latent_frames": [layout.video_latent_frames(n) for n in inputs["pixel_frames"]],
        "logit_normal_shift": [objective.logit_shift(n) for n in counts],
        "logit_normal_timesteps": [objective.shifted_logit_normal(x, n) for x, n in draws],
    }
    for name, bounds in positions.items():
        found[f"video_positions.{name}"] = np.tile(bounds, (len(video), 1, 1, 1))
    middle = positions[meta["fps_names"][1]].mean(-1)[None]
    for name in wanted:
        if name.startswith("rope."):
            _, heads, _, half = golden.expect[name].shape
            width, max_pos = 2 * heads * half, (20.0, 2048.0, 2048.0)
            table = _rotary(middle, max_pos, frequency_grid(10000.0, 3, width), width, heads)
            found[name] = table[name.endswith(".sin")].swapaxes(1, 2)
    return {name: np.asarray(value) for name, value in found.items()}


_rotary = jax.jit(rotary_table, static_argnums=(1, 3, 4))


def transformer(golden: Golden, wanted: Collection[str]) -> Tensors:
    return _velocities(golden, wanted, _load_transformer(golden))


def cross_mask(golden: Golden, wanted: Collection[str]) -> Tensors:
    return _velocities(golden, wanted, _load_transformer(golden), isolate=True)


def lora_forward(golden: Golden, wanted: Collection[str]) -> Tensors:
    graphdef, shapes, frozen = lora.split(_load_transformer(golden, adapted=True))
    adapters = lora.read_file(golden.beside("adapter_file"), shapes)
    return _velocities(golden, wanted, lora.merge(graphdef, adapters, frozen))


def _load_transformer(golden: Golden, adapted: bool = False) -> nnx.Module:
    """The transformer; if adapted, with LoRA layers that `meta` describes, not yet filled."""
    config = TransformerConfig.from_metadata(golden.weights.config)

    def build() -> Transformer:
        model = Transformer(config)
        if adapted:
            rank, alpha = golden.meta["rank"], golden.meta["alpha"]
            targets = tuple(golden.meta["target_modules"])
            lora.attach(model, lora.LoRAConfig(rank, alpha, 0.0, targets))
        return model

    return _load(golden, keys.TRANSFORMER, build)


def _velocities(
    golden: Golden, wanted: Collection[str], model: nnx.Module, isolate: bool = False
) -> Tensors:
    """Velocities of both modalities, for every variant that a wanted name's prefix describes."""
    found = {}
    for prefix in sorted({name.removesuffix(name.rpartition(".")[2]) for name in wanted}):
        text_mask = prefix != "no_text_mask."
        references = _references(golden, "video"), _references(golden, "audio")
        video, audio = _forward(
            model,
            _modality(golden, "video", text_mask),
            _modality(golden, "audio", text_mask),
            cross_timestep="own" if prefix == "per_token_cross." else "other",
            isolated=references if isolate or prefix == "cross_mask." else (0, 0),
        )
        found |= {f"{prefix}video_velocity": video, f"{prefix}audio_velocity": audio}
    return found


@functools.partial(nnx.jit, static_argnames=("cross_timestep", "isolated"))
def _forward(model: nnx.Module, video: Modality, audio: Modality, **options: Any) -> Any:
    return model(video, audio, **options)


def _modality(golden: Golden, name: str, text_mask: bool) -> Modality:
    """Raises InputError unless the timesteps of each sample are zeros, then its sigma."""
    fields = ("latent", "positions", "context", "sigma", "timesteps")
    latent, positions, context, sigma, timesteps = (golden.inputs[f"{name}.{f}"] for f in fields)
    clean = (timesteps != 0).argmax(-1)
    expected = np.where(np.arange(latent.shape[1]) < clean[:, None], 0, sigma[:, None])
    if (timesteps != expected).any():
        raise InputError(f"input.{name}.timesteps: expected zeros, then input.{name}.sigma")
    length = _context_len(golden, name) if text_mask else None
    return Modality(latent, positions, context, sigma, clean.astype(np.int32), length)


def _references(golden: Golden, name: str) -> int:
    """How many reference tokens stand before the targets."""
    target = golden.inputs[f"{name}.target"] != 0
    count = int((~target).sum())
    if not target[count:].all():
        raise InputError(
            f"input.{name}.target: not contiguous: a reference token stands behind a target; "
            "expected [reference | target]"
        )
    return count


def _context_len(golden: Golden, name: str) -> np.ndarray | None:
    mask = golden.inputs.get(f"{name}.context_mask")
    return None if mask is None else _prefix_lengths(mask, f"input.{name}.context_mask")


def _prefix_lengths(mask: np.ndarray, name: str) -> np.ndarray:
    """Ones at the start of each row; raises InputError where one follows a zero."""
    lengths = (mask != 0).sum(-1).astype(np.int32)
    if ((mask != 0) != (np.arange(mask.shape[-1]) < lengths[..., None])).any():
        raise InputError(f"{name}: expected ones, then zeros, in every row")
    return lengths


def train(golden: Golden, wanted: Collection[str]) -> Tensors:
    """Losses at the start, then the optimizer's steps."""
    graphdef, shapes, frozen = lora.split(_load_transformer(golden, adapted=True))
    adapters: Any = _start(golden, shapes)
    tx, schedule = _optimizer(golden, shapes)
    batch = objective.Batch(
        _stream(golden, "video"), _stream(golden, "audio"), golden.inputs["face_mask"]
    )
    draws, frame_tokens = _draws(golden)
    mask = golden.meta["mask"]
    mask_loss = objective.MaskLoss(
        mask["mask_loss_weight"], mask["background_loss_weight"], mask["threshold"], False
    )

    @functools.partial(jax.jit, static_argnames=("masked", "rule"))
    def evaluate(adapters: Any, frozen: Any, draw: objective.Draw, masked: bool, rule: str) -> Any:
        def loss(adapters: Any) -> Any:
            model: Any = lora.merge(graphdef, adapters, frozen)
            seen = []

            def recorded(*args: Any, **options: Any) -> Any:
                seen.append(model(*args, **options))
                return seen[-1]

            total, terms = objective.loss(
                recorded,
                batch,
                draw,
                grid=(1, 1, frame_tokens),
                mask_loss=mask_loss if masked else None,
                isolate=True,
                dtype=jnp.float32,
                cross_timestep=rule,
                remat=True,
            )
            video, audio = seen[-1]
            return total, (terms, {"video_prediction": video, "audio_prediction": audio})

        (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(adapters)
        return *aux, gradients

    @jax.jit
    def update(gradients: Any, moments: Any, adapters: Any) -> Any:
        updates, moments = tx.update(gradients, moments, adapters)
        return optax.apply_updates(adapters, updates), moments, optax.global_norm(gradients)

    found = {}
    for name in sorted({name.rpartition(".")[0] for name in wanted if name[:9] == "at_start."}):
        step, masked = _AT_START[name.rpartition(".")[2]]
        rule = "own" if "per_token_cross" in name else "other"
        terms, *_ = evaluate(adapters, frozen, draws[step], masked, rule)
        found |= {f"{name}.{term}": value for term, value in terms.items()}

    moments = tx.init(adapters)
    rates = dict.fromkeys([golden.meta["lr"], *(g["lr"] for g in golden.meta["lr_groups"])])
    for i, draw in enumerate(draws):
        masked = bool(golden.inputs["use_face_mask"][i])
        terms, predictions, gradients = evaluate(adapters, frozen, draw, masked, "other")
        adapters, moments, norm = update(gradients, moments, adapters)
        values = {**terms, **predictions, "grad_norm": norm}
        values["lr"] = np.array([schedule(rate, i) for rate in rates])
        values |= {f"grad.{k}": v for k, v in _file_tensors(gradients).items()}
        values |= {f"param.{k}": v for k, v in _file_tensors(adapters).items()}
        found |= {f"step{i}.{name}": value for name, value in values.items()}
    return found


# Losses with the first parameters: the step whose draws they use, and whether the mask weighs.
_AT_START = {
    "masked_cond": (0, True),
    "plain_cond": (0, False),
    "masked": (1, True),
    "plain": (2, False),
}


def _file_tensors(adapters: Any) -> Tensors:
    return lora.file_tensors(jax.device_get(adapters))


def _start(golden: Golden, shapes: Mapping[str, Any]) -> lora.Adapters:
    """The first adapters, `lora_start.*`, read as the LoRA file that they would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora_start.safetensors"
        save_safetensors(path, _read(golden.path, "lora_start."), {})
        return lora.read_file(path, shapes)


def _optimizer(
    golden: Golden, shapes: Mapping[str, Any]
) -> tuple[optax.GradientTransformation, optim.Schedule]:
    adamw, scheduler = golden.meta["optimizer"], golden.meta["scheduler"]
    schedule = optim.linear_schedule(
        scheduler["total_iters"], scheduler["start_factor"], scheduler["end_factor"]
    )
    names = {
        path: [f"{lora.FILE_PREFIX}{name}.weight" for name in lora.names(path, leaf.shape)]
        for path, leaf in shapes.items()
    }
    settings = optim.AdamW(*adamw["betas"], adamw["eps"], adamw["weight_decay"])
    clip = golden.meta["clip_grad_norm"]
    return optim.make_optimizer(_rates(golden, names), schedule, clip, settings), schedule


def _rates(golden: Golden, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    groups = [(group["pattern"], group["lr"]) for group in golden.meta["lr_groups"]]
    return optim.base_rates(names, golden.meta["lr"], groups)


def _stream(golden: Golden, name: str) -> objective.Stream:
    fields = ("x0", "ref", "positions", "context")
    target, reference, positions, context = (golden.inputs[f"{name}.{f}"] for f in fields)
    if _references(golden, name) != reference.shape[1]:
        raise InputError(f"input.{name}.target: expected {reference.shape[1]} reference tokens")
    return objective.Stream(target, reference, positions, context, _context_len(golden, name))


def _draws(golden: Golden) -> tuple[list[objective.Draw], int]:
    """What is random in each step, and how many tokens a conditioning first frame has."""
    inputs = golden.inputs
    given = _prefix_lengths(inputs["cond_mask"], "input.cond_mask")
    sizes = {int(n) for n in given.flat if n}
    if len(sizes) > 1:
        raise InputError(f"input.cond_mask: got {sorted(sizes)} tokens, expected one first frame")
    noises = zip(inputs["sigma"], inputs["video.noise"], inputs["audio.noise"], given, strict=True)
    return [objective.Draw(s, v, a, n > 0) for s, v, a, n in noises], max(sizes, default=0)


CASES: dict[str, Callable[[Golden, Collection[str]], Tensors]] = {
    "audio_mel": audio_mel,
    "audio_vae": audio_vae,
    "cross_mask_19b": cross_mask,
    "gemma": gemma,
    "lora_19b": lora_forward,
    "text_19b": text,
    "tokens": tokens,
    "train_19b": train,
    "transformer_19b": transformer,
    "video_vae_20": video_vae,
    "vocoder_20": vocoder,
}


# --- Errors, and the table.


class Row(NamedTuple):
    """One line of the table."""

    tensor: str
    error: float
    limit: float
    note: str = ""

    @property
    def verdict(self) -> str:
        # Not `error > limit`: a NaN falls short.
        return "ok" if self.error <= self.limit else "FAIL"


def compare(golden: Golden, wanted: Sequence[str], got: Tensors) -> Iterator[Row]:
    """The errors of all wanted tensors; those of single parameters are summed up by step."""
    parameters: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for name in wanted:
        want = golden.expect[name]
        if name not in got:
            yield Row(name, np.nan, np.nan, "not computed")
        elif got[name].shape != want.shape:
            shapes = f"shape {list(got[name].shape)}, expected {list(want.shape)}"
            yield Row(name, np.nan, np.nan, shapes)
        elif match := re.fullmatch(r"(step\d+)\.(grad|param)\.(.+)", name):
            parameters[match[1], match[2]].append(name)
        else:
            yield Row(name, *_measure(golden, name, got[name], want))
    for (step, what), names in parameters.items():
        if what == "param":
            yield from _parameter_rows(golden, step, names, got)
        else:
            rows = [Row(n, *_measure(golden, n, got[n], golden.expect[n])) for n in names]
            worst = max(rows, key=lambda row: (np.isnan(row.error), row.error))
            note = f"worst of {len(rows)}: {worst.tensor.partition('.grad.')[2]}"
            yield Row(f"{step}.grad.*", worst.error, worst.limit, note)


def _measure(golden: Golden, name: str, got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Error and limit of one tensor."""
    assert golden.kind is not None
    error = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    if want.dtype.kind in "iub" or (golden.kind == "tokens" and EXACT.fullmatch(name)):
        return error, 0.0
    if golden.kind == "tokens" and name.startswith("rope."):
        return error, ROTARY_LIMIT
    largest = float(np.abs(want).max(initial=0))
    return error / max(largest, 1e-30), LIMITS[golden.kind]


def _parameter_rows(
    golden: Golden, step: str, names: Sequence[str], got: Tensors
) -> Iterator[Row]:
    """Error of the updates so far, in units of the learning rate, by group."""
    groups = collections.defaultdict(list)
    for name, rate in _rates(golden, {name: [name] for name in names}).items():
        difference = got[name].astype(np.float64) - golden.expect[name]
        group = "default" if rate == np.float32(golden.meta["lr"]) else "low"
        groups[group].append((difference / rate).ravel())
    for group, parts in groups.items():
        error = np.concatenate(parts)
        values = float(np.abs(error).max()), float(np.sqrt((error**2).mean()))
        for what, value, limit in zip(("max", "rms"), values, PARAMETER_LIMITS[group], strict=True):
            row = f"{step}.param.*, {group} group, {what}"
            yield Row(row, value, limit, f"of {len(parts)}, in learning rates")


def verify(path: Path, out: Path | None) -> collections.Counter[str]:
    """Compute, compare, print and write one file; returns how often each verdict was given."""
    start, tally = time.perf_counter(), collections.Counter()
    try:
        golden = Golden.read(path)
    except InputError as error:
        return _failed(path, error)
    asked = {name: golden.asked_by(name) for name in golden.expect}
    wanted = sorted(name for name, by in asked.items() if by in SUPPORTED)
    later = {name: by for name, by in sorted(asked.items()) if by and by not in SUPPORTED}
    if not golden.expect or golden.kind is None:
        reason = "unknown kind" if golden.expect else "no expectations"
        print(f"\n{path.stem}: {reason}, nothing to compare")
        return tally
    got: Tensors = {}
    try:
        if wanted and golden.kind:
            found = CASES[golden.kind](golden, wanted)
            got = {n: _as_stored(found[n], golden.expect[n]) for n in wanted if n in found}
    except Exception as error:  # whatever it is, the other files are still compared
        if not isinstance(error, InputError):
            traceback.print_exc()
        tally += _failed(path, error)
    else:
        print(f"\n{path.stem} ({time.perf_counter() - start:.1f} s)")
        for row in compare(golden, wanted, got):
            tally[row.verdict] += 1
            print(f"  {row.tensor:44} {row.error:8.1e} {row.limit:8.1e}  {row.verdict:5}{row.note}")
    for name, by in later.items():
        tally["not supported yet"] += 1
        print(f"  {name:44} {'-':>8} {'-':>8}  not supported yet ({by})")
    if others := len(asked) - len(wanted) - len(later):
        print(f"  {others} tensors that no list asks for")
    if out is not None and wanted:
        save_safetensors(out / path.name, {f"expect.{name}": x for name, x in got.items()}, {})
    return tally


def _as_stored(value: Any, want: np.ndarray) -> np.ndarray:
    return np.asarray(value).astype(want.dtype)


def _failed(path: Path, error: Exception) -> collections.Counter[str]:
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    print(f"\n{path.stem}\n  FAIL: {kind}{' '.join(str(error).split())[:300]}")
    return collections.Counter(FAIL=1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}")


def main() -> None:
    parser = _Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="GOLDEN_DIR", type=Path)
    parser.add_argument("--only", metavar="NAME", help="one file, without .safetensors")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write what was computed")
    arguments = parser.parse_args()
    folder, out = arguments.folder, arguments.out
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sorted(folder.glob(f"{arguments.only or '*'}.safetensors"))
    if not paths:
        raise InputError(f"{folder}: no file {arguments.only or '*'}.safetensors")
    if out is not None and out.resolve() == folder.resolve():
        raise InputError(f"--out {out}: would overwrite the golden files")
    jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.device_kind} ({device.platform}), float32")
    print(f"  {'tensor':44} {'error':>8} {'limit':>8}  verdict")
    tally = sum((verify(path, out) for path in paths), collections.Counter())
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in tally.items()))
    if tally["FAIL"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.exiting(main)
