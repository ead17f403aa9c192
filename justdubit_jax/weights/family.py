"""Which family a checkpoint is of, and why one that is not ours is refused.

LTX-2.0 and LTX-2.3 are told apart by nothing here: each model reads from the `config` what it has.
Source of the marks: Lightricks/LTX-2 packages/ltx-core (embeddings_processor's check of Gemma's
version, model configurators) and Lightricks/LTX-Video's published configs.
"""

from collections.abc import Mapping
from typing import Any

_OURS = "AVTransformer3DModel"
_VIDEO_CODEC = "CausalVideoAutoencoder"
# From this version on a checkpoint says which Gemma 4 it is made for.
_GEMMA_4_SINCE = (2, 4)

_EXPECTED = "expected LTX-2.0 (19B) or LTX-2.3 (22B)"


def unknown_family(config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
    """Name and reason, where a file's `config` and metadata are not of a family that we have."""
    section, version = config.get("transformer", {}), metadata.get("model_version", "")
    name = section.get("_class_name", _OURS)
    if name == "Transformer3DModel":
        return f"an LTX-Video checkpoint (transformer._class_name {name}): no sound; {_EXPECTED}"
    if name != _OURS:
        return f"a checkpoint of another family (transformer._class_name {name}); {_EXPECTED}"
    if "gemma_source_checkpoint" in metadata or _numbers(version) >= _GEMMA_4_SINCE:
        what = f"an LTX-2.5 checkpoint (model_version {version or 'unknown'})"
        return f"{what}: its text encoder is Gemma 4, which we do not have; {_EXPECTED}"
    codec = config.get("vae", {}).get("_class_name", _VIDEO_CODEC)
    if codec != _VIDEO_CODEC:
        return f"a checkpoint with another video codec (vae._class_name {codec}); {_EXPECTED}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 3, 0) of "2.3.0"; () of what is no version."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(map(str.isdecimal, parts)) else ()
