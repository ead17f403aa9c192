"""Sound at another rate, as the reference does it: by torchaudio's default, a windowed sinc.

FFmpeg's own resampler is another filter, which the audio latents show.
"""

import math

import numpy as np
from jaxtyping import Float, Float32

_ZEROS = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # of the lower rate's Nyquist frequency passes


def resample(wave: Float[np.ndarray, "c n"], rate: int, to: int) -> Float32[np.ndarray, "c m"]:
    """Sound of `rate` Hz at `to` Hz: ceil(n * to / rate) samples; silence lies around it.

    Sample 0 keeps its time. A sample is the sum of its neighbours weighted by sinc(t) under a Hann
    window, |t| < 6, where t counts periods of 0.99 times the lower rate.
    """
    if rate == to:
        return wave.astype(np.float32)
    divisor = math.gcd(rate, to)
    up, down = to // divisor, rate // divisor
    period = down / (_ROLLOFF * min(up, down))  # in samples of the old rate
    width = math.ceil(_ZEROS * period)
    count = math.ceil(wave.shape[1] * up / down)
    out = np.empty((len(wave), count), np.float32)
    taps = np.arange(-width, width + 2)
    padded = np.pad(wave.astype(np.float64), ((0, 0), (width, width + 1 + down)))
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=1)
    # Every up-th sample lies between its neighbours alike. (scipy's polyphase filter is the same,
    # and takes seconds to import.)
    for phase in range(min(up, count)):
        before, rest = divmod(phase * down, up)
        t = np.clip((taps - rest / up) / period, -_ZEROS, _ZEROS)
        kernel = np.sinc(t) * np.cos(t / _ZEROS * np.pi / 2) ** 2 / period
        places = neighbours[:, before::down]
        out[:, phase::up] = places[:, : len(range(phase, count, up))] @ kernel
    return out
