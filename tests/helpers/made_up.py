"""Made-up clips, and lines of metrics.jsonl."""

import numpy as np


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def record(step: int, loss: float = 1.0) -> dict:
    losses = {"loss": loss, "loss_video": 0.9 * loss, "loss_audio": 1.1 * loss}
    rates = {"default": 1e-4, ".*audio.*": 2e-4}
    speed = {"seconds": 2.0, "tflops": 266.6, "mfu": 0.2695}
    return {"step": step, **losses, "grad_norm": 0.5, **speed, "learning_rate": rates}
