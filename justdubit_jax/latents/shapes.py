"""What crosses the border: clips, sounds, latents and contexts on the host."""

import numpy as np
from jaxtyping import Float, UInt8

# An underscore leaves a size open: one function may hold several clips.
Frames = UInt8[np.ndarray, "_f _y _x 3"]
Sound = Float[np.ndarray, "2 _n"]
Latents = Float[np.ndarray, "_c ..."]
LatentPair = tuple[Latents, Latents]  # of picture and sound
# Of video and audio.
Contexts = tuple[Float[np.ndarray, "_t _d"], Float[np.ndarray, "_t _d"]]
