"""python -m justdubit_jax.dub: dub one clip with a trained LoRA.

The clip is brought to a legal size, frame rate and length, and what was done is said. The output
has the dubbed picture and sound, as an mp4 with h264 and aac.
"""

import argparse
import dataclasses
import math
import tempfile
import typing
from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from justdubit_jax import cli
from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.clips.write import write_video
from justdubit_jax.devices import sharding
from justdubit_jax.devices.choose import default_dtype, without_flash
from justdubit_jax.dubbing.job import clip_job, decode_samples, make_request
from justdubit_jax.dubbing.sample import Sampler
from justdubit_jax.errors import InputError, about
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.record import read_record
from justdubit_jax.models.transformer_config import CrossTimestep, TransformerConfig
from justdubit_jax.sampling.guidance import Prediction, SamplingSettings, guidance_of_both
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint
from justdubit_jax.weights.load import load_weights

NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"

# Of the flags that are numbers. Negative strengths are in use; ComfyUI has the same limits.
_LIMITS = {
    "lora-strength": (-100, 100),
    "seed": (0, 2**32 - 1),
    "steps": (1, math.inf),
    "guidance-scale": (1, math.inf),
    "audio-cfg-guidance-scale": (1, math.inf),
    "a2v-guidance-scale": (1, math.inf),
    "v2a-guidance-scale": (1, math.inf),
    "video-rescale-scale": (0, 1),
    "audio-rescale-scale": (0, 1),
    "stg-scale": (0, math.inf),
}


# --batch-guidance: the passes of a step side by side, or one after the other; by free memory.
_BATCHED = {"yes": True, "no": False, "auto": None}


def main(args: argparse.Namespace) -> None:
    """Encode, sample, decode, write."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    check_writable(args.out)
    if note := without_flash():
        console.print(note)
    checkpoint = open_checkpoint(args.model_path)
    transformer_config = TransformerConfig.from_metadata(checkpoint.config)
    settings = sampling_settings(args, transformer_config.cross_timestep)
    config = lora_files.config_of(args.lora)
    config = dataclasses.replace(config, alpha=config.alpha * args.lora_strength)
    with about(args.lora):
        model, _ = lora.adapted_model(transformer_config, config)
    graphdef, shapes, _ = lora.split(model)
    adapters = lora_files.read_file(args.lora, shapes)
    sampler = Sampler(
        graphdef,
        model.config,
        checkpoint.layout,
        sharding.make_mesh(1, 1),
        settings,
        args.steps,
        _BATCHED[args.batch_guidance],
    )
    size = {"frame_rate": args.frame_rate, "height": args.height, "width": args.width}
    job, notes = clip_job(checkpoint, args.video, args.image, **size)
    for note in notes:
        console.print(f"{args.video}: {note}")
    negative = args.negative_prompt if Prediction.NEGATIVE in settings.passes else None
    gemma, seed = args.text_encoder_path, args.seed
    request = make_request(checkpoint, job, gemma, args.prompt, negative, seed)

    model = load_weights(checkpoint, keys.TRANSFORMER, model, settings.dtype)
    # On the device only now: the text encoder has had it to itself.
    adapters = {path: jnp.asarray(x, settings.dtype) for path, x in adapters.items()}
    weights = lora.Weights(adapters, lora.split(model)[2])
    with cli.counting(console, "sampling", args.steps) as show:
        sampled = sampler.sample(weights, [request], show)
    assert sampled is not None, "nobody stops it"
    del model, weights, adapters, sampler
    (_, latents), *_ = sampled
    frames, sound, rate = next(decode_samples(checkpoint, [latents]))
    write_video(args.out, frames, job.fps, sound, rate)
    console.print(f"wrote {args.out}: {job.frames} frames, {float(job.fps):g} fps")


def sampling_settings(args: argparse.Namespace, usual: CrossTimestep) -> SamplingSettings:
    """How to sample, by the command's flags.

    `usual` is the modulation rule where neither flag nor LoRA file says one.
    """
    video, audio = guidance_of_both(
        cfg=args.guidance_scale,
        audio_cfg=args.audio_cfg_guidance_scale,
        video_modality=args.a2v_guidance_scale,
        audio_modality=args.v2a_guidance_scale,
        rescale=args.video_rescale_scale,
        audio_rescale=args.audio_rescale_scale,
        stg=args.stg_scale,
        mode=args.stg_mode,
        blocks=args.stg_blocks,
    )
    return SamplingSettings(
        video=video,
        audio=audio,
        isolate=not args.no_cross_attention_masking,
        cross_timestep=args.cross_timestep or read_record(args.lora).cross_timestep or usual,
        dtype=default_dtype(),
    )


def check_writable(path: Path) -> None:
    """Raise InputError now if the output could not be written later."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"--out {path}: expected a name that ends with .mp4")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()  # permissions alone do not tell
    except OSError as error:
        raise InputError(f"--out {path}: the folder is not writable: {error.strerror}") from None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m justdubit_jax.dub", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("--video", type=Path, required=True, help="clip to dub, with sound")
    add("--prompt", required=True, help="who speaks, in which language, and the new words")
    add("--lora", type=Path, required=True, help="LoRA .safetensors (ComfyUI form)")
    add("--model-path", type=Path, required=True, help="LTX-2 .safetensors or converted folder")
    add("--text-encoder-path", type=Path, required=True, help="Gemma 3 folder")
    add("--out", type=Path, required=True, help="mp4 to write")
    add("--steps", type=int, default=30)
    add("--guidance-scale", type=float, default=3.0, help="of prompt over negative; 1 is off")
    add("--audio-cfg-guidance-scale", type=float, help="of the sound; default: --guidance-scale")
    add("--a2v-guidance-scale", type=float, default=1.0, help="of picture with sound; 1 is off")
    add("--v2a-guidance-scale", type=float, default=1.0, help="of sound with picture; 1 is off")
    add("--video-rescale-scale", type=float, default=0.0, help="to the unguided contrast, 0..1")
    add("--audio-rescale-scale", type=float, help="default: --video-rescale-scale")
    add("--stg-scale", type=float, default=0.0, help="spatio-temporal guidance; 0 is off")
    add("--stg-blocks", type=int, nargs="+", default=[29], help="blocks that it perturbs")
    add("--stg-mode", choices=("stg_av", "stg_v"), default="stg_av")
    add(
        "--batch-guidance",
        choices=("auto", "yes", "no"),
        default="auto",
        help="guidance passes side by side or one after the other; auto: by free memory",
    )
    add("--negative-prompt", default=NEGATIVE_PROMPT)
    add("--seed", type=int, default=42)
    add("--width", type=int, help="multiple of 32; default: from the clip")
    add("--height", type=int, help="multiple of 32; default: from the clip")
    add("--frame-rate", type=exact_fps, help="25, 29.97, 30000/1001; default: the clip's")
    add("--lora-strength", type=float, default=1.0)
    add("--image", type=Path, help="picture to start from")
    add(
        "--cross-timestep",
        choices=typing.get_args(CrossTimestep),
        help="default: what the LoRA file says, else as the checkpoint wants it",
    )
    add("--no-cross-attention-masking", action="store_true", help="as trained without masking")
    args = parser.parse_args(argv)
    if not args.prompt.strip():
        parser.error("--prompt is empty")
    for flag, (low, high) in _LIMITS.items():
        value = getattr(args, flag.replace("-", "_"))
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
            parser.error(f"--{flag} {value}: expected {limits}")
    return args


if __name__ == "__main__":
    cli.exiting(lambda: main(parse_arguments()))
