"""What a sample's latents become, with stand-ins for the decoders."""

from unittest.mock import Mock

import numpy as np

from justdubit_jax.dubbing import job
from justdubit_jax.weights.checkpoint import SafetensorsCheckpoint


def test_each_sample_is_decoded_with_its_own_sound(monkeypatch):
    """The sounds first, since one decoder after the other is on the device; left stays left."""

    def decoded(latents):
        return np.stack([latents[0, 0], latents[0, 0] + 0.5])

    def levels(latents):
        yield latents.astype(np.uint8)

    monkeypatch.setattr(job, "audio_decoder", lambda checkpoint: (decoded, 16_000))
    monkeypatch.setattr(job, "video_decoder", lambda *_: levels)
    monkeypatch.setattr(job, "default_tiling", lambda layout: None)
    pairs = [(np.full((1, 1, 1, 3), n, np.float32), np.full((1, 1, 4), -n)) for n in (1.0, 2.0)]
    found = list(job.decode_samples(Mock(spec=SafetensorsCheckpoint, layout=None), pairs))
    for number, (picture, sound, rate) in enumerate(found, 1):
        assert [frames.max() for frames in picture] == [number] and rate == 16_000
        np.testing.assert_array_equal(sound, [[-number] * 4, [0.5 - number] * 4])
    assert len(found) == 2
