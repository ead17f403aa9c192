import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toy import one_step

from justdubit_jax.training.objective import Draw, Objective


def fixed_draw(self, key, batch, frames):
    """Noise that depends on the sample alone."""
    size = len(batch.video.target)
    video, audio = (jnp.sin(37 * stream.target) for stream in (batch.video, batch.audio))
    return Draw(jnp.full(size, 0.7), video, audio, jnp.zeros(size, bool))


def test_accumulation_equals_one_large_batch(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(Objective, "draw", fixed_draw)
    alike = "--config.training_strategy.mask_config.use_masked_loss=False"
    whole = one_step(demo, tmp_path, 1, 1, 8, alike)
    parts = one_step(
        demo, tmp_path, 1, 1, 2, alike, "--config.optimization.gradient_accumulation_steps=4"
    )
    for name, want in whole[0].items():
        assert parts[0][name] == pytest.approx(want, rel=1e-5)  # float32 sums in another order
    for path, want in whole[1].items():
        np.testing.assert_allclose(parts[1][path], want, atol=1e-5 * np.abs(want).max())
