"""The training step on random weights and a random batch, and the torch trainer's beside it."""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax import cli, codec, flops, lora, settings, sharding, tokens, train
from justdubit_jax.errors import InputError
from justdubit_jax.flops import TokenCounts
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.transformer import Transformer, TransformerConfig
from justdubit_jax.objective import Batch, Stream

REPO = Path(__file__).parents[1]
CHANNELS = 128  # of a latent token, video or audio
FPS = 25
SIZES = {"toy": (4, 512), "19b": (48, 4096)}  # layers, video width
MOST_TOKENS_A_FRAME = 220  # 640x352 pixels


@dataclasses.dataclass(frozen=True)
class Size:
    """What is timed. Token counts are of one sample, target and reference together."""

    layers: int
    width: int
    video_tokens: int
    audio_tokens: int
    text_tokens: int
    rank: int
    batch: int
    dtype: str
    remat: bool
    isolate: bool

    @property
    def config(self) -> dict[str, Any]:
        """The metadata of a checkpoint of that size; at 48 layers of 4096, LTX-2 19B's."""
        head = next((n for n in (128, 64, 32) if self.width % n == 0), 0)
        if not head or self.width < 64:
            raise InputError(f"--width {self.width}: expected a multiple of 32, at least 64")
        heads = self.width // head
        return {
            "transformer": {
                "num_layers": self.layers,
                "num_attention_heads": heads,
                "attention_head_dim": head,
                "cross_attention_dim": self.width,
                "audio_num_attention_heads": heads,
                "audio_attention_head_dim": head // 2,
                "audio_cross_attention_dim": self.width // 2,
                "caption_channels": self.width * 15 // 16,
                "in_channels": CHANNELS,
                "out_channels": CHANNELS,
                "av_ca_timestep_scale_multiplier": 1000.0,
                "use_middle_indices_grid": True,
                "rope_type": "split",
                "frequencies_precision": "float64",
                # The reference has no defaults for these.
                "dropout": 0.0,
                "attention_bias": True,
                "num_vector_embeds": None,
                "activation_fn": "gelu-approximate",
                "num_embeds_ada_norm": 1000,
                "use_linear_projection": False,
                "only_cross_attention": False,
                "cross_attention_norm": True,
                "double_self_attention": False,
                "upcast_attention": False,
                "standardization_norm": "rms_norm",
                "norm_elementwise_affine": False,
                "qk_norm": "rms_norm",
                "positional_embedding_type": "rope",
                "use_audio_video_cross_attention": True,
                "share_ff": False,
                "av_cross_ada_norm": True,
            }
        }

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of the target; 16 x 220 tokens at 640x352x121."""
        count = self.video_tokens // 2
        most = min(count, MOST_TOKENS_A_FRAME)
        columns = next(n for n in range(most, 0, -1) if count % n == 0)
        return count // columns, 1, columns

    @property
    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Of [reference | target], video and audio; both parts begin at 0."""
        video = tokens.video_positions(self.grid, FPS)
        audio = tokens.audio_positions(self.audio_tokens // 2)
        return np.concatenate([video] * 2, 1), np.concatenate([audio] * 2, 1)

    @property
    def counts(self) -> TokenCounts:
        video, audio = self.video_tokens, self.audio_tokens
        return TokenCounts(video, audio, self.text_tokens, video // 2, audio // 2)

    def settings(self) -> settings.Settings:
        """The published run's, at this size. Its paths exist but are not read."""
        flags = {
            "model.model_path": REPO / "configs",
            "data.preprocessed_data_root": REPO / "configs",
            "lora.rank": self.rank,
            "lora.alpha": self.rank,
            "mesh.data": 1,
            "optimization.batch_size": self.batch,
            "optimization.enable_gradient_checkpointing": self.remat,
            "training_strategy.enable_cross_attention_masking": self.isolate,
            "validation.enable_cross_attention_masking": self.isolate,
            "acceleration.mixed_precision_mode": "bf16" if self.dtype == "bfloat16" else "no",
        }
        arguments = [f"--config.{key}={value}" for key, value in flags.items()]
        config = cli.parse_config(["benchmark", f"--config={REPO / 'configs/dub.py'}", *arguments])
        return settings.read(config)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--size", choices=tuple(SIZES), default="toy", help="layers and width: 4, 512 or 48, 4096")
    add("--layers", type=cli.positive, help="in place of --size's")
    add("--width", type=cli.positive, help="of video, in place of --size's; audio has half of it")
    add("--video-tokens", type=cli.positive, default=7040, help="target and reference together")
    add("--audio-tokens", type=cli.positive, default=242, help="target and reference together")
    add("--text-tokens", type=cli.positive, default=1024)
    add("--rank", type=cli.positive, default=128)
    add("--batch", type=cli.positive, default=1)
    add("--dtype", choices=("bfloat16", "float32"), help="default: float32 on a CPU")
    add("--remat", action=switch, default=True, help="recompute the blocks in the backward pass")
    add("--isolate", action=switch, default=True, help="no audio-video attention to references")
    add("--runs", type=cli.positive, default=10, help="timed steps; their median is reported")
    add("--peer", choices=("torch",), help="the torch trainer's step too, in turns with ours")
    add("--peer-python", default=sys.executable, help="an interpreter with ltx-core and peft")


def read_size(args: argparse.Namespace) -> Size:
    """The sizes asked for. Raises InputError if target and reference cannot be equally long."""
    layers, width = SIZES[args.size]
    for name in ("video_tokens", "audio_tokens"):
        if (count := getattr(args, name)) % 2:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {count}: expected an even number, half of it reference")
    return Size(
        layers=args.layers or layers,
        width=args.width or width,
        dtype=args.dtype or jnp.dtype(codec.default_dtype()).name,
        **{
            name: getattr(args, name)
            for name in ("video_tokens", "audio_tokens", "text_tokens", "rank", "batch")
        },
        remat=args.remat,
        isolate=args.isolate,
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Time our step, and the peer's in turns with it. Only one computes at a time."""
    if args.peer:  # the card is shared; this is read when the first array is made
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    size = read_size(args)
    config = size.config
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(args.peer_python, size)) if args.peer else None
        step = Step(size)
        turns = [step.run] + ([peer.run] if peer else [])
        for run in 2 * turns:  # not timed: first runs allocate, and choose among algorithms
            run()
        times = [[run() for run in turns] for _ in range(args.runs)]
    ours, *theirs = (statistics.median(column) for column in zip(*times, strict=True))
    work = flops.step_flops(
        TransformerConfig.from_metadata(config),
        size.counts,
        rank=size.rank,
        targets=step.settings.lora.target_modules,
        remat=size.remat,
        isolated=size.isolate,
    )
    rate = size.batch * work.model / ours
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    memory, source = step.memory()
    result = {
        "size": dataclasses.asdict(size),
        "compile_seconds": step.compile_seconds,
        "step_seconds": ours,
        "step_seconds_all": [row[0] for row in times],
        "model_tflop": size.batch * work.model / 1e12,
        "tflop_with_recompute": size.batch * work.total / 1e12,
        "tflop_per_second": rate / 1e12,
        "mfu": rate / peak if peak else None,
        "peak_memory_gb": memory / 1e9,
        "peak_memory_source": source,
        "loss": step.loss,
    }
    if peer:
        result |= {
            "peer": peer.about,
            "peer_step_seconds": theirs[0],
            "peer_step_seconds_all": [row[1] for row in times],
            "peer_peak_memory_gb": peer.peak_bytes / 1e9,
            "ours_over_peer": ours / theirs[0],
        }
    return result


class Step:
    """The jitted step of justdubit_jax.train, compiled for a size, with its state and a batch."""

    def __init__(self, size: Size):
        self.settings = run = size.settings()
        mesh = sharding.make_mesh(*run.mesh)
        model, _ = lora.adapted_model(size.config, run.lora)
        graphdef, shapes, self._frozen = lora.split(random_weights(model, run.dtype))
        tx, _ = train.make_optimizer(run, shapes)
        place = train.state_shardings(shapes, tx, mesh)
        self._state = train.first_state(run, shapes, tx, place)
        self._batch = jax.device_put(random_batch(size), sharding.batch(mesh))
        step = train.make_step(run, graphdef, tx, mesh, place, "own")
        jax.block_until_ready((self._state, self._frozen, self._batch))
        start = time.perf_counter()
        lowered = step.lower(self._state, self._frozen, self._batch, size.grid)
        self._step = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.loss = float("nan")

    def run(self) -> float:
        """Seconds of one step, until all of its results are there."""
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - start
        self.loss = float(metrics["loss"])
        return seconds

    def memory(self) -> tuple[float, str]:
        """Peak bytes and who says so: the device, XLA's plan of the step, or the process."""
        stats = jax.devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"], "device"
        plan: Any = self._step.memory_analysis()
        if plan:
            arguments = plan.argument_size_in_bytes + plan.output_size_in_bytes
            return arguments - plan.alias_size_in_bytes + plan.temp_size_in_bytes, "XLA's plan"
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "resident memory"


def random_weights(model: Transformer, dtype: Any) -> Transformer:
    """Fill an abstract model on the device, block by block; activations keep near 1."""
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def stack(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        bound = math.sqrt(3 / shape[-1])

        def block(key: jax.Array) -> jax.Array:
            return jax.random.uniform(key, shape[1:], dtype, -bound, bound)

        return jax.lax.map(block, jax.random.split(key, shape[0]))

    for i, (path, variable) in enumerate(nnx.to_flat_state(state)):
        name, shape = ".".join(map(str, path)), tuple(variable.shape)
        if not isinstance(variable, Frozen):
            continue
        kind = jnp.float32 if name.endswith("scale_shift_table") else dtype
        if name.endswith("norm.weight"):
            variable.set_value(jnp.ones(shape, kind))
        else:
            variable.set_value(stack(jax.random.key(i), shape, kind))
    return nnx.merge(graphdef, state)


def random_batch(size: Size) -> Batch:
    """Random latents, contexts and face mask."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((size.batch, *shape), np.float32)

    def stream(count: int, positions: np.ndarray) -> Stream:
        context: Any = normal(size.text_tokens, size.config["transformer"]["caption_channels"])
        target: Any = normal(count // 2, CHANNELS)
        reference: Any = normal(count // 2, CHANNELS)
        places: Any = np.repeat(positions[None], size.batch, 0)
        return Stream(target, reference, places, context)

    video, audio = size.positions
    face: Any = (normal(size.video_tokens // 2) > 0).astype(np.float32)
    return Batch(stream(size.video_tokens, video), stream(size.audio_tokens, audio), face)


class Peer:
    """tools/torch_peer.py in a process of its own, which computes only when it is asked to."""

    def __init__(self, python: str, size: Size):
        self._python = python
        try:
            self._process = subprocess.Popen(
                [python, str(REPO / "tools/torch_peer.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise InputError(f"--peer-python {python}: {error.strerror}") from None
        names, positions = ("video", "audio"), size.positions
        request = dataclasses.asdict(size) | {
            "config": size.config,
            "targets": list(size.settings().lora.target_modules),
            "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
            "threads": len(os.sched_getaffinity(0)),
            "positions": {n: p.tolist() for n, p in zip(names, positions, strict=True)},
        }
        self.about = self._ask(request)
        self.peak_bytes = 0

    def run(self) -> float:
        """Seconds of one step."""
        answer = self._ask({})
        self.peak_bytes = answer["peak_bytes"]
        return answer["seconds"]

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # one that has ended says why
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in answer:
            process.wait()
            raise InputError(f"--peer-python {self._python}: {answer['error']}")
        return answer
