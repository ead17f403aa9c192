"""Reading the golden vectors in tests/golden."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

from justdubit_jax.weights.checkpoint import SafetensorsCheckpoint, open_safetensors

FOLDER = Path(__file__).parents[1] / "golden"


def load_golden(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """All tensors of `name`.safetensors and its `meta` record."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="numpy") as file:
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118


def golden_checkpoint(name: str) -> SafetensorsCheckpoint:
    """The same file as a checkpoint, to load weights from."""
    return open_safetensors([FOLDER / f"{name}.safetensors"])


def error(got, want) -> float:
    """max |got - want| / max |want|, the measure of the golden vectors' tolerances."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
