"""Crossed wires between a row of the data set and its files in `.precomputed`."""

from wires.fault import Fault

_READ = "justdubit_jax/clips/read.py"
_LOAD = "justdubit_jax/preprocessing/load.py"
_ENCODE = "justdubit_jax/preprocessing/encode.py"
_BUCKETS = "justdubit_jax/preprocessing/buckets.py"
_VIDEO = "justdubit_jax/latents/video.py"
_AUDIO = "justdubit_jax/latents/audio.py"
_FROM_FILES = "tests/test_end_to_end.py"
_ROWS = "tests/preprocessing tests/test_end_to_end.py"

FAULTS = (
    Fault(
        "clips.reversed-in-time",
        _READ,
        "pixels = np.stack([picture for _, picture in taken])",
        "pixels = np.stack([picture for _, picture in taken][::-1])",
        _FROM_FILES,
    ),
    Fault(
        "clips.turned-the-other-way",
        _READ,
        "upright = self._orientation.apply(self._colour.rgb(presented.frame))",
        "upright = self._orientation.apply(self._colour.rgb(presented.frame))[::-1]",
        _FROM_FILES,
    ),
    Fault(
        "clips.blue-before-red",
        _READ,
        "self._colour.rgb(presented.frame))",
        "self._colour.rgb(presented.frame)[..., ::-1])",
        _FROM_FILES,
    ),
    Fault(
        "clips.pixel-aspect-ignored",
        _READ,
        "self.size = shown_size(height, width, aspect)",
        "self.size = shown_size(height, width, aspect / aspect)",
        "tests/clips/test_geometry.py",
    ),
    Fault(
        "rows.reference-is-the-clip",
        _LOAD,
        "            row.reference, lambda *_: Shape(*bucket), bucket.frames",
        "            row.clip, lambda *_: Shape(*bucket), bucket.frames",
        _ROWS,
    ),
    Fault(
        "rows.clip-and-reference-swapped",
        _LOAD,
        "        frames=clip.frames,\n"
        '        reference_frames=clips["reference"][1].frames if row.reference else None,',
        '        frames=clips["reference"][1].frames if row.reference else clip.frames,\n'
        "        reference_frames=clip.frames if row.reference else None,",
        _ROWS,
    ),
    Fault(
        "rows.sounds-swapped",
        _LOAD,
        'sound=sounds["media"].samples if sounds else None,',
        "sound=sounds[max(sounds)].samples if sounds else None,",
        _ROWS,
    ),
    Fault(
        "rows.sound-from-the-files-beginning",
        _LOAD,
        "read_sound(path, sample_rate, seconds, other.start)",
        "read_sound(path, sample_rate, seconds, None)",
        "tests/preprocessing/test_load.py",
        harmless="read_sound looks for the first picture's time itself where it is not told",
    ),
    Fault(
        "rows.sound-of-another-length",
        _LOAD,
        "seconds = Fraction(bucket.frames) / clip.fps",
        "seconds = Fraction(bucket.frames) / 24",
        _ROWS,
    ),
    Fault(
        "rows.mask-inverted",
        _LOAD,
        "mask = pool_mask(white, layout)",
        "mask = pool_mask(1 - white, layout)",
        _ROWS,
    ),
    Fault(
        "rows.mask-of-every-eighth-frame",
        _BUCKETS,
        '"(g k) h w -> g h w", "max"',
        '"(g k) h w -> g h w", "mean"',
        "tests/preprocessing",
    ),
    Fault(
        "rows.smallest-bucket",
        _BUCKETS,
        "return min(fitting, key=distance)",
        "return max(fitting, key=distance)",
        "tests/preprocessing",
    ),
    Fault(
        "encode.reference-latents-are-the-clips",
        _ENCODE,
        'tensors = {"latents": own, "reference_latents": reference, "masks": item.mask}',
        'tensors = {"latents": own, "reference_latents": own, "masks": item.mask}',
        _ROWS,
    ),
    Fault(
        "encode.sounds-swapped",
        _ENCODE,
        "sounds = (item.sound, item.reference_sound)",
        "sounds = (item.reference_sound, item.sound)",
        _ROWS,
    ),
    Fault(
        "encode.captions-of-a-group-reversed",
        _ENCODE,
        "for clip in group])",
        "for clip in reversed(group)])",
        "tests/preprocessing tests/test_preprocess.py",
    ),
    Fault(
        "encode.trigger-left-out",
        _ENCODE,
        "(args.lora_trigger or '').strip()",
        "('').strip()",
        "tests/test_preprocess.py",
    ),
    Fault(
        "encode.frame-rate-of-the-metadata",
        _ENCODE,
        '"fps": repr(float(fps)),',
        '"fps": repr(25.0),',
        "tests/preprocessing tests/test_preprocess.py tests/test_end_to_end.py",
    ),
    Fault(
        "encode.pixels-from-0-to-1",
        _VIDEO,
        ".astype(jnp.float32) / 127.5 - 1",
        ".astype(jnp.float32) / 255",
        _FROM_FILES,
    ),
    Fault(
        "encode.channels-of-the-sound-swapped",
        _AUDIO,
        "np.asarray(encode(model, jnp.asarray(sound)[None])[0])",
        "np.asarray(encode(model, jnp.asarray(sound)[None, ::-1])[0])",
        _FROM_FILES,
    ),
    Fault(
        "decode.channels-of-the-sound-swapped",
        _AUDIO,
        "return np.asarray(decode(decoder, vocoder, jnp.asarray(latents)[None])[0])",
        "return np.asarray(decode(decoder, vocoder, jnp.asarray(latents)[None])[0])[::-1]",
        "tests/latents/test_audio.py",
    ),
    Fault(
        "decode.levels-rounded-up",
        _VIDEO,
        "levels = jnp.clip((video + 1) / 2, 0, 1) * 255",
        "levels = jnp.ceil(jnp.clip((video + 1) / 2, 0, 1) * 255)",
        "tests/latents",
    ),
)
