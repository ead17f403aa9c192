"""Reading a checkpoint, encoding a clip, sampling and decoding."""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import size as sizes

from justdubit_jax import cli
from justdubit_jax.clips.write import write_video
from justdubit_jax.demo.checkpoint import make_checkpoint
from justdubit_jax.devices import sharding
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.dubbing.sample import compiled_loop
from justdubit_jax.files import save_safetensors
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import video_decoder, video_encoder
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.preprocessing.buckets import Bucket, parse_buckets
from justdubit_jax.sampling.guidance import Guidance, SamplingSettings
from justdubit_jax.sampling.loop import Conditioned
from justdubit_jax.sampling.schedule import sigmas
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint
from justdubit_jax.weights.load import expected, load_weights, parameters, random_weights
from justdubit_jax.weights.parts import build_part

FPS = 25
STATISTICS = "vae.per_channel_statistics.mean-of-means"  # one for each latent channel


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model-path", type=Path, help="LTX-2 .safetensors or converted folder")
    add("--layers", type=cli.positive, default=8, help="of the file that is made if none is given")
    add("--width", type=cli.positive, default=1024, help="likewise; of the video stream")
    add("--runs", type=cli.positive, default=3, help="timed runs; their median is reported")


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    _add_vae_arguments(parser)
    parser.add_argument("--frames", type=cli.positive, default=121)
    parser.add_argument("--runs", type=cli.positive, default=3, help="their median is reported")


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    sizes.add_arguments(parser)
    parser.add_argument("--steps", type=cli.positive, default=4, help="denoising steps of a run")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="1 is off: one pass")


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_vae_arguments(parser)
    parser.add_argument("--frames", type=cli.positive, nargs="+", default=[65, 257])


def _add_vae_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--resolution", default="640x352", help="WIDTHxHEIGHT, multiples of 32")
    add("--model-path", type=Path, help="LTX-2 .safetensors or converted folder; default: a toy")


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Read the transformer into the device's memory, first from the disk, then from its cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = args.model_path or make_transformer(Path(folder), args.layers, args.width)
        checkpoint = open_checkpoint(path)
        drop_from_cache(path)
        times, size = [], 0
        for _ in range(1 + args.runs):
            start = time.perf_counter()
            model = build_part(keys.TRANSFORMER, checkpoint.config, checkpoint.shapes)
            model = load_weights(checkpoint, keys.TRANSFORMER, model, None)
            arrays = [v.get_value() for v in parameters(model).values()]
            jax.block_until_ready(arrays)
            times.append(time.perf_counter() - start)
            size = sum(array.nbytes for array in arrays)
            del model, arrays
    cold, warm = times[0], statistics.median(times[1:])
    return {
        "gb": size / 1e9,
        "first_seconds": cold,
        "first_gb_per_second": size / cold / 1e9,
        "cached_seconds": warm,
        "cached_gb_per_second": size / warm / 1e9,
        "peak_resident_gb": sizes.peak_resident() / 1e9,
    }


def make_transformer(folder: Path, layers: int, width: int) -> Path:
    """A checkpoint of the transformer alone, bfloat16."""
    config = sizes.config_of(layers, width)
    shapes = expected(keys.TRANSFORMER, build_part(keys.TRANSFORMER, config, {}))
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.standard_normal(shape, np.float32).astype(jnp.bfloat16)
        for key, shape in shapes.items()
    }
    path = folder / "transformer.safetensors"
    save_safetensors(path, tensors, {"config": json.dumps(config)})
    return path


def drop_from_cache(path: Path) -> None:
    """Have the system forget what it holds of the files, so that reading them reads the disk."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """Encode a clip, as preprocessing does it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(args.model_path or toy_checkpoint(Path(folder)))
        bucket = parse_buckets(f"{args.resolution}x{args.frames}", checkpoint.layout)[0]
        run = video_encoder(checkpoint, default_dtype(), default_tiling(checkpoint.layout))
    frames = np.random.default_rng(0).integers(0, 256, (*bucket, 3), np.uint8)
    first, *times = (_seconds(lambda: run([frames])) for _ in range(1 + args.runs))
    seconds = statistics.median(times)
    peak, source = _peak()
    return {
        "clip": f"{args.resolution}x{args.frames}",
        "first_seconds": first,
        "seconds": seconds,
        "frames_per_second": args.frames / seconds,
        "peak_memory_gb": peak / 1e9,
        "peak_memory_source": source,
    }


def sample_steps(args: argparse.Namespace) -> dict[str, Any]:
    """The compiled denoising loop with random weights."""
    size = sizes.read_size(args)
    run = size.settings()
    model, _ = lora.adapted_model(TransformerConfig.from_metadata(size.config), run.lora)
    model = random_weights(keys.TRANSFORMER, model, jax.random.key(0), run.dtype)
    graphdef, shapes, frozen = lora.split(model)
    weights = lora.Weights(lora.init(shapes, jax.random.key(0)), frozen)
    guidance = Guidance(cfg=args.guidance_scale)
    settings = SamplingSettings(
        video=guidance,
        audio=guidance,
        isolate=size.isolate,
        cross_timestep="own",
        dtype=run.dtype,
    )
    batch = sizes.random_batch(size)
    video, audio = (
        Conditioned(s.target, s.reference, s.positions, s.context, s.context)
        for s in (batch.video, batch.audio)
    )
    tokens, levels = (video.start(), audio.start()), sigmas(args.steps)
    loop = compiled_loop(graphdef, settings, sharding.make_mesh(1, 1))
    first, *times = (
        _seconds(lambda: jax.block_until_ready(loop(weights, (video, audio), tokens, levels)))
        for _ in range(1 + args.runs)
    )
    seconds = statistics.median(times)
    peak, source = _peak()
    return {
        "size": dataclasses.asdict(size),
        "steps": args.steps,
        "passes": [prediction.name.lower() for prediction in settings.passes],
        "first_seconds": first,
        "seconds": seconds,
        "seconds_per_step": seconds / args.steps,
        "peak_memory_gb": peak / 1e9,
        "peak_memory_source": source,
    }


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """Decode clips of several lengths to mp4, each in a process of its own, for its peak memory."""
    figures: dict[str, Any] = {"resolution": args.resolution}
    with tempfile.TemporaryDirectory() as folder:
        path = args.model_path or toy_checkpoint(Path(folder))
        layout = open_checkpoint(path).layout
        buckets = [parse_buckets(f"{args.resolution}x{n}", layout)[0] for n in args.frames]
        pool = concurrent.futures.ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
        )
        with pool:
            peaks = []
            for bucket in buckets:
                seconds, loaded, peak, source = pool.submit(decode_one, path, bucket).result()
                peaks.append(peak)
                figures[f"{bucket.frames}_frames"] = {
                    "seconds": seconds,
                    "loaded_gb": loaded / 1e9,
                    "peak_memory_gb": peak / 1e9,
                    "peak_memory_source": source,
                }
    return figures | {"peak_over_first": [peak / peaks[0] for peak in peaks]}


def decode_one(path: Path, bucket: Bucket) -> tuple[float, float, float, str]:
    """Seconds, bytes before the clip, peak bytes and their source."""
    checkpoint = open_checkpoint(path)
    layout = checkpoint.layout
    run = video_decoder(checkpoint, default_dtype(), default_tiling(layout))
    shape = layout.video_channels, *layout.grid(*bucket)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    loaded, _ = _peak()
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(lambda: write_video(Path(folder) / "clip.mp4", run(latents), FPS))
    return seconds, loaded, *_peak()


def toy_checkpoint(folder: Path) -> Path:
    """The demo's checkpoint: every part, at toy width."""
    return make_checkpoint(folder / "toy.safetensors", text_width=64)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak() -> tuple[float, str]:
    peak = sizes.device_peak()
    return (sizes.peak_resident(), "resident memory") if peak is None else (peak, "device")
