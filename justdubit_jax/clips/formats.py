"""How arrays and FFmpeg's frames are turned into one another, alike in both directions."""

from fractions import Fraction

import numpy as np
from av.audio import AudioFrame
from av.video.reformatter import Interpolation
from jaxtyping import Float

# Between RGB and YUV: without these swscale takes the nearest chroma sample, is off by two levels,
# and rounds differently from one CPU to the next.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)


def audio_frame(sound: Float[np.ndarray, "c n"], rate: int) -> AudioFrame:
    layout = "mono" if len(sound) == 1 else "stereo"
    sound = np.ascontiguousarray(sound, np.float32)
    frame = AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame
