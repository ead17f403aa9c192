"""The losses of a run as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from justdubit_jax.files import replacing


def loss_curve_png(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Chart the losses of metrics.jsonl over steps: each step pale, a running mean on top."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot(
        xlabel="step", ylabel="flow-matching loss (mean squared error)", title="Training loss"
    )
    steps = np.array([record["step"] for record in records])
    window = max(1, len(records) // 20)
    for name, colour in (("loss", "black"), ("loss_video", "C0"), ("loss_audio", "C1")):
        values = np.array([record[name] for record in records], np.float64)
        lonely = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        label = name if window == 1 else f"{name}, mean of {window} steps"
        axes.plot(steps, _running_mean(values, window), color=colour, label=label, marker=lonely)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _running_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Mean of the last `window` finite values, of fewer at the start; nan where there is none."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite).astype(np.float64)
    for totals in (sums, counts):
        totals[window:] -= totals[:-window].copy()
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0)
