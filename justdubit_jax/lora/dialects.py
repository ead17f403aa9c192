"""The names of adapters: our paths, the reference's modules, and the keys of LoRA files.

An adapter's array has the path "blocks.video.attn1.to_q.lora.A": the linear's own path, and which
of the two matrices it is. Its blocks are stacked on our side; the reference has a module for each.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from justdubit_jax.weights import keys


def is_stacked(path: str) -> bool:
    """Whether an adapter's array has a leading block axis: it has where its linear's weight has."""
    return keys.TRANSFORMER.is_stacked(f"{_linear(path)}.weight")


def blocks(path: str, shape: Sequence[int]) -> Sequence[int | None]:
    """The blocks of an adapter's array: their numbers, or only None where it is not stacked."""
    return range(shape[0]) if is_stacked(path) else [None]


def module_name(linear: str, layer: int | None) -> str:
    """The reference's name of a linear: "transformer_blocks.3.attn1.to_q" in block 3."""
    key = keys.TRANSFORMER.key(f"{linear}.weight", layer)
    return key.removeprefix(keys.DIFFUSION_MODEL).removesuffix(".weight")


def name_in_block(path: str, layer: int | None) -> str:
    """The reference's name of an adapter's linear without the block: "attn1.to_q"."""
    return module_name(_linear(path), layer).removeprefix(f"transformer_blocks.{layer}.")


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way to name the arrays of adapters, where every block has its own.

    `pattern` has {module}, the reference's name of the linear, and {matrix}, which is A or B.
    """

    name: str
    pattern: str

    def key(self, path: str, layer: int | None) -> str:
        """The name of block `layer` of the array with our path (None where it is not stacked)."""
        module = module_name(_linear(path), layer)
        return self.pattern.format(module=module, matrix=path.rpartition(".")[2])

    def keys_of(self, path: str, shape: Sequence[int]) -> list[str]:
        """The names of all blocks of an array."""
        return [self.key(path, layer) for layer in blocks(path, shape)]

    def path(self, key: str) -> tuple[str, int | None] | None:
        """Our path of a name, and its block: the inverse of `key`.

        None if the name is not of this dialect, or not of the transformer.
        """
        match = _regex(self.pattern).fullmatch(key)
        if match is None:
            return None
        weight = f"{keys.DIFFUSION_MODEL}{match['module']}.weight"
        if keys.owners(weight) != [keys.TRANSFORMER.name]:
            return None
        place = keys.TRANSFORMER.path(weight)
        assert place is not None, weight
        linear, layer = place[0].removesuffix(".weight"), place[1]
        return f"{linear}.lora.{match['matrix']}", layer


# The torch trainer's files, which ComfyUI and ltx-pipelines read.
COMFY = Dialect("ComfyUI", "diffusion_model.{module}.lora_{matrix}.weight")
# Parameters in the torch trainer, by which its learning-rate patterns are searched.
PEFT = Dialect("PEFT", "base_model.model.{module}.lora_{matrix}.default.weight")


def _linear(path: str) -> str:
    """The path of the linear that an adapter's array belongs to."""
    return path.rpartition(".lora.")[0]


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    escaped = escaped.replace(r"\{module\}", r"(?P<module>.+)")
    return re.compile(escaped.replace(r"\{matrix\}", r"(?P<matrix>[AB])"))
