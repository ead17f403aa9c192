"""Small stand-ins for what a run needs: talking cartoon faces and a tiny Gemma.

Everything follows from a seed. The models are random, so they learn and dub nothing worth keeping;
what they have is the layout, the shapes and the sizes (small) of the real files.
"""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Float, UInt8
from tokenizers import decoders, models, pre_tokenizers, processors

from justdubit_jax.clips.write import write_video
from justdubit_jax.files import replacing, save_safetensors

FPS = 25
SAMPLE_RATE = 48_000

# First three formants of five vowels in Hz (Peterson and Barney, 1952, men).
_FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
_HAIR_COLOURS = {
    "red": (170, 60, 40),
    "black": (30, 25, 30),
    "blond": (225, 190, 100),
    "grey": (150, 150, 155),
    "blue": (60, 80, 200),
}
_MOUTH = (90, 15, 25)


def make_dataset(
    folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (64, 96), frames: int = 25
) -> Path:
    """Write `count` pairs of clips at 25 fps with face masks, and dataset.json; returns its path.

    A pair is one person, who moves and sounds alike in both clips and says other syllables. `size`
    is (height, width) in pixels. The paths in dataset.json are relative to `folder`.
    """
    entries = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        speaker = _Speaker.random(rng)
        times = np.arange(frames) / FPS
        entry = {"caption": ""}
        for role in ("media", "reference"):
            syllables = _random_syllables(rng, frames / FPS)
            sound, opening = speaker.voice(syllables, frames)
            path = Path("clips", f"{index:03}_{role}.mp4")
            pictures = speaker.draw(times, opening, size)
            write_video(folder / path, pictures, FPS, np.stack([sound, sound]), SAMPLE_RATE)
            entry[f"{role}_path"] = path.as_posix()
            if role == "media":
                words = "".join(syllable.text for syllable in syllables)
                entry["caption"] = f"A cartoon face with {speaker.hair} hair says: {words}."
        path = Path("clips", f"{index:03}_mask.mp4")
        write_video(folder / path, speaker.draw_mask(times, size), FPS)
        entries.append(entry | {"mask_path": path.as_posix()})
    listing = folder / "dataset.json"
    with replacing(listing) as temporary:
        temporary.write_text(json.dumps(entries, indent=2) + "\n")
    return listing


@dataclasses.dataclass(frozen=True)
class _Syllable:
    text: str
    start: float  # seconds
    duration: float


def _random_syllables(rng: np.random.Generator, seconds: float) -> list[_Syllable]:
    syllables, start = [], rng.uniform(0, 0.08)
    while start + 0.1 < seconds:
        text = str(rng.choice(list("bdgklmn"))) + str(rng.choice(list(_FORMANTS)))
        duration = min(rng.uniform(0.14, 0.26), seconds - start)
        syllables.append(_Syllable(text, start, duration))
        start += duration + rng.choice([0, 0, 0.12])
    return syllables


@dataclasses.dataclass(frozen=True)
class _Speaker:
    """A face and a voice. Lengths are in units of half the height, the origin is the centre."""

    hair: str
    skin: tuple[int, int, int]
    background: tuple[int, int, int]
    pitch: float  # Hz
    tract: float  # scale of the formants
    sway: tuple[float, float, float]  # phases of the head's movement

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Speaker":
        shade = rng.uniform(0.5, 1)
        red, green, blue = (int(value) for value in rng.integers(60, 180, 3))
        return cls(
            hair=str(rng.choice(list(_HAIR_COLOURS))),
            skin=(int(245 * shade), int(200 * shade), int(165 * shade)),
            background=(red, green, blue),
            pitch=float(rng.uniform(95, 220)),
            tract=float(rng.uniform(0.95, 1.2)),
            sway=tuple(rng.uniform(0, 2 * np.pi, 3)),
        )

    def voice(
        self, syllables: list[_Syllable], frames: int
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " f"]]:
        """A buzz shaped by formants, and its loudness (0..1) during each frame."""
        t = np.arange(frames * SAMPLE_RATE // FPS) / SAMPLE_RATE
        harmonics = np.arange(1, int(5000 / self.pitch))
        phase = 2 * np.pi * self.pitch * t + 0.5 * np.sin(2 * np.pi * 5 * t + self.sway[2])
        buzz = np.sin(harmonics[:, None] * phase) / harmonics[:, None]
        sound, loudness = np.zeros_like(t), np.zeros_like(t)
        for syllable in syllables:
            inside = np.clip((t - syllable.start) / syllable.duration, 0, 1)
            envelope = np.sin(np.pi * inside) ** 2
            formants = self.tract * np.array(_FORMANTS[syllable.text[-1]])
            distance = (harmonics[:, None] * self.pitch - formants) / (0.12 * formants + 50)
            sound += envelope * ((0.05 + np.exp(-(distance**2)).sum(1)) @ buzz)
            loudness += envelope
        sound = 0.6 * sound / max(np.abs(sound).max(), 1e-6)
        return sound.astype(np.float32), loudness.reshape(frames, -1).mean(1)

    def draw(
        self,
        times: Float[np.ndarray, " f"],
        opening: Float[np.ndarray, " f"],
        size: tuple[int, int],
    ) -> UInt8[np.ndarray, "f y x 3"]:
        """The face at `times` in seconds, its mouth open by `opening` (0..1)."""
        pictures = np.empty((len(times), *size, 3), np.uint8)
        for picture, (y, x), wide in zip(pictures, self._heads(times), opening, strict=True):
            canvas = np.full((*size, 3), self.background, np.float64)
            for centre, radii, colour in (
                ((y - 0.18, x), (0.62, 0.56), _HAIR_COLOURS[self.hair]),
                ((y, x), (0.64, 0.48), self.skin),
                ((y - 0.12, x - 0.19), (0.09, 0.08), (250, 250, 250)),
                ((y - 0.12, x + 0.19), (0.09, 0.08), (250, 250, 250)),
                ((y - 0.12, x - 0.19), (0.04, 0.04), (20, 20, 30)),
                ((y - 0.12, x + 0.19), (0.04, 0.04), (20, 20, 30)),
                ((y + 0.32, x), (0.03 + 0.16 * wide, 0.22 - 0.06 * wide), _MOUTH),
            ):
                cover = _ellipse(centre, radii, size)[..., None]
                canvas += cover * (np.array(colour) - canvas)
            picture[:] = np.rint(canvas)
        return pictures

    def draw_mask(
        self, times: Float[np.ndarray, " f"], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "f y x 3"]:
        """White over the face, black elsewhere."""
        covers = [_ellipse((y, x), (0.66, 0.5), size) for y, x in self._heads(times)]
        return np.repeat(np.rint(255 * np.stack(covers))[..., None], 3, -1).astype(np.uint8)

    def _heads(self, times: Float[np.ndarray, " f"]) -> Float[np.ndarray, "f 2"]:
        rows = 0.05 + 0.08 * np.sin(2 * np.pi * 0.9 * times + self.sway[0])
        return np.stack([rows, 0.3 * np.sin(2 * np.pi * 0.5 * times + self.sway[1])], 1)


def _ellipse(
    centre: tuple[float, float], radii: tuple[float, float], size: tuple[int, int]
) -> Float[np.ndarray, "y x"]:
    """How much of each pixel an ellipse covers, 0..1, with an edge about one pixel soft."""
    unit = size[0] / 2
    y, x = (np.mgrid[: size[0], : size[1]] + 0.5 - np.array(size)[:, None, None] / 2) / unit
    distance = np.hypot((y - centre[0]) / radii[0], (x - centre[1]) / radii[1])
    return np.clip((1 - distance) * min(radii) * unit + 0.5, 0, 1)


# google/gemma-3-12b-it's settings but for the sizes.
GEMMA_TEXT_CONFIG = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 131072,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 16,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000,
    "sliding_window": 64,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 260,
}
_SPECIAL_TOKENS = {  # in the order of their ids
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
}


def make_gemma(folder: Path, seed: int = 0) -> None:
    """Write a Gemma 3 folder as Hugging Face lays it out: random bfloat16 text model, tokenizer."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": GEMMA_TEXT_CONFIG,
        "torch_dtype": "bfloat16",
    }
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in _gemma_shapes().items():
        # Norms scale by 1 + weight; the embedding is multiplied by the square root of its width.
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        weights[f"language_model.model.{name}"] = rng.normal(0, scale, shape)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(
        folder / "model.safetensors",
        {name: array.astype(jnp.bfloat16) for name, array in weights.items()},
        {"format": "pt"},
    )
    _write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _gemma_shapes() -> dict[str, tuple[int, ...]]:
    """Parameter names and shapes of Gemma 3's text model."""
    c = GEMMA_TEXT_CONFIG
    dim, hidden, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (queries, dim),
        "self_attn.k_proj": (keys, dim),
        "self_attn.v_proj": (keys, dim),
        "self_attn.o_proj": (dim, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "post_attention_layernorm": (dim,),
        "pre_feedforward_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.up_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "post_feedforward_layernorm": (dim,),
    }
    return {
        "embed_tokens.weight": (c["vocab_size"], dim),
        **{
            f"layers.{index}.{name}.weight": shape
            for index in range(c["num_hidden_layers"])
            for name, shape in layer.items()
        },
        "norm.weight": (dim,),
    }


def _write_tokenizer(folder: Path) -> None:
    """One token per byte of UTF-8 behind Gemma's special tokens; prompts start with <bos>."""
    special = list(_SPECIAL_TOKENS.values())
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    )
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", symbols.index("<bos>"))],
    )
    settings = _SPECIAL_TOKENS | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(_SPECIAL_TOKENS, indent=2) + "\n")
