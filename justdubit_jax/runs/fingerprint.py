"""What makes two runs the same run: the configuration's keys, the base model and the data set.

A checkpoint carries the fingerprint of the run that wrote it. Whoever continues it may change what
does not alter the course of the training (where files lie, what is logged, sampled or kept, how
many steps are made); anything else would be another training under the old one's name.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from justdubit_jax.errors import InputError

_HARMLESS = (
    "output_dir",
    "model.model_path",  # BASE says whether the model is the same
    "model.text_encoder_path",
    "model.load_checkpoint",  # only the first step starts from it
    "data.preprocessed_data_root",  # DATA says whether the samples are the same
    "data.num_dataloader_workers",
    "optimization.steps",
    "optimization.enable_gradient_checkpointing",
    "acceleration.load_text_encoder_in_8bit",
    "mesh.",
    "validation.",
    "checkpoints.",
    "wandb.",
    "hub.",
)
_DECISIVE = ("validation.holdout",)  # takes samples out of the training

BASE, DATA = "base model", "data set"


def fingerprint(
    config: ConfigDict, shapes: Mapping[str, Sequence[int]], samples: Iterable[str]
) -> dict[str, str]:
    """Every key of a config as text; the base's tensors and the samples' names as a hash."""
    keys = {key: repr(value) for key, value in _flat(config.to_dict())}
    base = sorted((key, list(shape)) for key, shape in shapes.items())
    return keys | {BASE: _hash(base), DATA: _hash(sorted(samples))}


def check_same(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The harmless keys that changed; raises InputError naming the others that did.

    Keys that only one of the two has come from another version of this package.
    """
    changed = [key for key in now if key in before and before[key] != now[key]]
    refused = [key for key in changed if key in _DECISIVE or not key.startswith(_HARMLESS)]
    if refused:
        listed = "; ".join(
            f"the {key} is another" if key in (BASE, DATA) else f"{key} {before[key]} -> {now[key]}"
            for key in refused
        )
        raise InputError(
            f"config: not as in the checkpoint to continue: {listed}; "
            "change back, start over with --fresh, or choose another output_dir and go on from the "
            "LoRA with model.load_checkpoint=FILE"
        )
    return changed


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
