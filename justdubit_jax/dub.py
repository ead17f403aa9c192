"""python -m justdubit_jax.dub: dub one clip with a trained LoRA.

The clip is brought to a legal size, frame rate and length, and what was done is said. The output
has the dubbed picture and sound, as an mp4 with h264 and aac.
"""

import argparse
import dataclasses
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console

from justdubit_jax import cli, clips, codec, denoise, keys, lora, media, sample, weights
from justdubit_jax.errors import InputError

NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"


def main(args: argparse.Namespace) -> None:
    """Encode, sample, decode, write."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    check_writable(args.out)
    checkpoint = weights.open_checkpoint(args.model_path)
    config = lora.config_of(args.lora)
    config = dataclasses.replace(config, alpha=config.alpha * args.lora_strength)
    model, _ = lora.adapted_model(checkpoint.config, config)
    graphdef, shapes, _ = lora.split(model)
    adapters = lora.read_file(args.lora, shapes)
    job = read_job(args, checkpoint, console)

    guided = args.guidance_scale != 1
    encode_text = codec.text_encoder(checkpoint, args.text_encoder_path, codec.default_dtype())
    prompt = encode_text([args.prompt])[0]
    negative = encode_text([args.negative_prompt])[0] if guided else None
    del encode_text
    encoded = sample.encode(checkpoint, [job])[0]

    dtype = codec.default_dtype()
    model = weights.load(checkpoint, keys.TRANSFORMER, model, dtype)
    graphdef, _, frozen = lora.split(model)
    audio_shape = codec.audio_latent_shape(checkpoint)
    streams = sample.conditioned(
        job, encoded, (prompt, negative), model.config, audio_shape, args.seed
    )
    guidance = denoise.Guidance(cfg=args.guidance_scale)
    settings = denoise.Settings(
        video=guidance,
        audio=guidance,
        isolate=not args.no_cross_attention_masking,
        cross_timestep=args.cross_timestep or trained_rule(args.lora),
        dtype=dtype,
        batched=sample.runs_batched(model.config, streams, 1 + guided),
    )
    console.print(f"sampling {args.steps} steps")
    run = sample.sampler(graphdef, settings)
    sampled = run(adapters, frozen, *streams, denoise.sigmas(args.steps))
    latents = sample.target_latents(job, sampled, streams, audio_shape[0])
    del model, frozen, run, sampled
    frames, sound, rate = next(sample.decode(checkpoint, [latents]))
    media.write_video(args.out, frames, job.fps, sound, rate)
    console.print(f"wrote {args.out}: {job.frames} frames, {float(job.fps):g} fps")


def read_job(
    args: argparse.Namespace, checkpoint: weights.Checkpoint, console: Console
) -> sample.Job:
    """The clip and the first frame as the model takes them. Raises InputError on bad ones."""
    clip = clips.fit_clip(args.video, args.frame_rate, args.height, args.width)
    for note in clip.notes:
        console.print(f"{args.video}: {note}")
    count, height, width, _ = clip.frames.shape
    rate = codec.sample_rate(checkpoint)
    image = clips.fit_image(args.image, height, width) if args.image else None
    sound = media.read_audio(args.video, rate, Fraction(count) / clip.fps)
    return sample.Job(count, height, width, clip.fps, clip.frames, sound, image)


def trained_rule(path: Path) -> Any:
    """The audio-video modulation that a LoRA file says it was trained with; JustDubit's if none."""
    with weights.safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get("cross_timestep", "own")


def check_writable(path: Path) -> None:
    """Raise InputError now if the output could not be written later."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"--out {path}: expected a name that ends with .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--out {path}: the folder is not writable")


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
    add("--guidance-scale", type=float, default=3.0, help="1 is off")
    add("--negative-prompt", default=NEGATIVE_PROMPT)
    add("--seed", type=int, default=42)
    add("--width", type=int, help="multiple of 32; default: from the clip")
    add("--height", type=int, help="multiple of 32; default: from the clip")
    add("--frame-rate", type=media.exact_fps, help="25, 29.97, 30000/1001; default: the clip's")
    add("--lora-strength", type=float, default=1.0)
    add("--image", type=Path, help="picture to start from")
    add("--cross-timestep", choices=("own", "other"), help="default: what the LoRA file says")
    add("--no-cross-attention-masking", action="store_true", help="as trained without masking")
    args = parser.parse_args(argv)
    if not args.prompt.strip():
        parser.error("--prompt is empty")
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: expected at least 1")
    if args.guidance_scale < 1:
        parser.error(f"--guidance-scale {args.guidance_scale}: expected at least 1")
    return args


if __name__ == "__main__":
    cli.exiting(lambda: main(parse_arguments()))
