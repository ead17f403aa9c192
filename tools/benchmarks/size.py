"""What the model's benchmarks run on: a size, random weights of it and a random batch."""

import argparse
import dataclasses
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from justdubit_jax import cli
from justdubit_jax.data.batch import Batch, SampleShape, StreamShape, StreamTokens
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout
from justdubit_jax.training import settings

REPO = Path(__file__).parents[2]
CHANNELS = 128  # of a latent token, video or audio
FPS = 25
SIZES = {"toy": (4, 512), "19b": (48, 4096)}  # layers, video width
MOST_TOKENS_A_FRAME = 220  # 640x352 pixels


def config_of(layers: int, width: int) -> dict[str, Any]:
    """The metadata of a checkpoint; at 48 layers of 4096, LTX-2 19B's."""
    head = next((n for n in (128, 64, 32) if width % n == 0), 0)
    if not head or width < 64:
        raise InputError(f"--width {width}: expected a multiple of 32, at least 64")
    heads = width // head
    return {
        "transformer": {
            "num_layers": layers,
            "num_attention_heads": heads,
            "attention_head_dim": head,
            "cross_attention_dim": width,
            "audio_num_attention_heads": heads,
            "audio_attention_head_dim": head // 2,
            "audio_cross_attention_dim": width // 2,
            "caption_channels": width * 15 // 16,
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
        },
        # What the codecs compress: 8 x 32 x 32 pixels, 4 x 4 of the mel spectrogram.
        "vae": {
            "encoder_blocks": [["compress_all_res", {}]] * 3,
            "decoder_blocks": [["compress_all", {}]] * 3,
            "timestep_conditioning": False,
        },
        "audio_vae": {
            "model": {
                "params": {
                    "ddconfig": {
                        "mel_bins": 64,
                        "attn_resolutions": [],
                        "mid_block_add_attention": False,
                    }
                }
            }
        },
    }


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
    isolate: bool

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.layers, self.width)

    @property
    def layout(self) -> Layout:
        return Layout.from_metadata(self.config)

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
        video = self.layout.video_positions(self.grid, FPS)
        audio = self.layout.audio_positions(self.audio_tokens // 2)
        return np.concatenate([video] * 2, 1), np.concatenate([audio] * 2, 1)

    @property
    def shape(self) -> SampleShape:
        text = self.text_tokens, self.config["transformer"]["caption_channels"]
        video, audio = self.video_tokens // 2, self.audio_tokens // 2
        return SampleShape(
            grid=self.grid,
            video=StreamShape(video, video, CHANNELS, 3, *text),
            audio=StreamShape(audio, audio, CHANNELS, 1, *text),
            has_mask=True,
        )

    def settings(self, more: Mapping[str, Any] = MappingProxyType({})) -> settings.Settings:
        """The published run's, at this size; `more` are further keys, where they are not None.

        Its paths exist but are not read.
        """
        flags = {
            "model.model_path": REPO / "configs",
            "data.preprocessed_data_root": REPO / "configs",
            "lora.rank": self.rank,
            "lora.alpha": self.rank,
            "mesh.data": 1,
            "optimization.batch_size": self.batch,
            "training_strategy.enable_cross_attention_masking": self.isolate,
            "validation.enable_cross_attention_masking": self.isolate,
            "acceleration.mixed_precision_mode": "bf16" if self.dtype == "bfloat16" else "no",
        }
        flags |= {key: value for key, value in more.items() if value is not None}
        arguments = [f"--config.{key}={value}" for key, value in flags.items()]
        config = cli.parse_config(["benchmark", f"--config={REPO / 'configs/dub.py'}", *arguments])
        return settings.read(config)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a model's size and of a sample's."""
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="toy", help="layers and width: 4, 512 or 48, 4096")
    add("--layers", type=cli.positive, help="in place of --size's")
    add("--width", type=cli.positive, help="of video, in place of --size's; audio has half of it")
    add("--video-tokens", type=cli.positive, default=7040, help="target and reference together")
    add("--audio-tokens", type=cli.positive, default=242, help="target and reference together")
    add("--text-tokens", type=cli.positive, default=1024)
    add("--rank", type=cli.positive, default=128)
    add("--batch", type=cli.positive, default=1)
    add("--dtype", choices=("bfloat16", "float32"), help="default: float32 on a CPU")
    switch = argparse.BooleanOptionalAction
    add("--isolate", action=switch, default=True, help="no audio-video attention to references")
    add("--runs", type=cli.positive, default=10, help="timed runs; their median is reported")


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
        dtype=args.dtype or jnp.dtype(default_dtype()).name,
        **{
            name: getattr(args, name)
            for name in ("video_tokens", "audio_tokens", "text_tokens", "rank", "batch")
        },
        isolate=args.isolate,
    )


def random_batch(size: Size) -> Batch:
    """Random latents, contexts and face mask."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((size.batch, *shape), np.float32)

    def stream(count: int, positions: np.ndarray) -> StreamTokens:
        context: Any = normal(size.text_tokens, size.config["transformer"]["caption_channels"])
        target: Any = normal(count // 2, CHANNELS)
        reference: Any = normal(count // 2, CHANNELS)
        places: Any = np.repeat(positions[None], size.batch, 0)
        return StreamTokens(target, reference, places, context)

    video, audio = size.positions
    face: Any = (normal(size.video_tokens // 2) > 0).astype(np.float32)
    return Batch(stream(size.video_tokens, video), stream(size.audio_tokens, audio), face)


def peak_resident() -> int:
    """Peak resident bytes of this process. On Linux getrusage's includes that of its parent."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def device_peak() -> int | None:
    """Peak bytes of the device's own count, where it has one."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")
