"""Graphics cards that are not there, described well enough to compile for and to estimate with."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from justdubit_jax.errors import InputError

TABLE = Path(__file__).with_name("cards.toml")

# What a card reaches of its peak in bfloat16: products of a step by cuBLAS, flash attention and its
# gradient by cuDNN. Of an H100 SXM and an H200 these were 775 and 708, 606 and 593, 475 and 467
# TFLOP/s (docs/gpu-record.md); convolutions are assumed. Of other cards nothing better is known.
_PRODUCTS, _FLASH, _FLASH_GRADIENT, _CONVOLUTIONS = 740 / 989, 600 / 989, 470 / 989, 500 / 989
# float32 products are TF32, at half the rate, or, at highest precision, three of bfloat16.
_FLOAT32 = 0.5
_FP8 = 2.0
_BANDWIDTH = 0.84  # of memory's, by what XLA fuses; both cards

# A program may have this much of a card's memory (XLA_PYTHON_CLIENT_MEM_FRACTION of a run).
SHARE = 0.95
# XLA takes this much of the memory it is told as its limit where there is no allocator to ask.
_XLA_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Card:
    """A line of cards.toml: bytes, and rates a second."""

    name: str  # as the driver says it
    capability: str  # CUDA's, e.g. 9.0a
    cores: int  # streaming multiprocessors
    clock_ghz: float
    float32_units: int  # a core
    memory: int
    bandwidth: float
    cache: int  # second level
    shared_memory: int  # a core
    shared_memory_block: int  # that a block may ask for
    threads: int  # a core
    bus_bits: int
    peak_bf16: float  # operations, dense
    link: float  # bytes one way between two cards of a machine

    @property
    def limit(self) -> int:
        """Bytes that a program may take."""
        return int(SHARE * self.memory)

    @property
    def products(self) -> float:
        """Operations a second of matrix products in bfloat16, as the next ones reached ones."""
        return _PRODUCTS * self.peak_bf16

    @property
    def flash(self) -> float:
        return _FLASH * self.peak_bf16

    @property
    def flash_gradient(self) -> float:
        return _FLASH_GRADIENT * self.peak_bf16

    @property
    def convolutions(self) -> float:
        return _CONVOLUTIONS * self.peak_bf16

    @property
    def memory_rate(self) -> float:
        """Bytes a second that kernels reach."""
        return _BANDWIDTH * self.bandwidth

    def rate_of(self, dtype: str) -> float:
        """By which a rate in bfloat16 is multiplied for operands of XLA's type `dtype`."""
        if dtype.startswith("f8"):
            return _FP8
        return _FLOAT32 if dtype == "f32" else 1.0

    @property
    def has_flash(self) -> bool:
        """Whether cuDNN's attention runs on it: from Ampere on."""
        return float(self.capability.rstrip("a")) >= 8

    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto of it, as text."""
        major, _, rest = self.capability.partition(".")
        minor = rest.rstrip("a")
        feature = "ACCELERATED_FEATURES" if rest.endswith("a") else "NONE"
        # cuDNN wants two properties that XLA does not write. XLA puts the name into their JSON
        # without escaping it, so they ride on the name.
        name = rf"{self.name}\",\"smCountOrigin\":0,\"memoryBusWidth\":{self.bus_bits},\"note\":\""
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_memory,
            "threads_per_core_limit": self.threads,
            "core_count": self.cores,
            "fpus_per_core": self.float32_units,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": int(self.limit / _XLA_SHARE),
            "shared_memory_per_block_optin": self.shared_memory_block,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "device_address_bits": 64,
        }
        lines = [f"  {key}: {value}" for key, value in info.items()]
        version = f"major: {major} minor: {minor} feature_extension: {feature}"
        lines += [
            f"  cuda_compute_capability {{ {version} }}",
            f'  name: "{name}"',
            '  driver_version: "12.9.0"',
            '  runtime_version: "12.9.0"',
            '  compile_time_toolkit_version: "12.9.0"',
            '  dnn_version: "9.28.0"',
        ]
        return "\n".join(
            [
                "gpu_device_info {",
                *lines,
                "}",
                'platform_name: "CUDA"',
                "dnn_version_info { major: 9 minor: 28 patch: 0 }",
                f'device_description_str: "{name}"',
            ]
        )


def read_card(name: str) -> Card:
    """A card of the table by its name, or of a person's own file of one table of the same fields.

    Raises InputError for an unknown name, listing those that there are, or a file that is wrong.
    """
    table = tomllib.loads(TABLE.read_text())
    if name in table:
        return Card(**table[name])
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise InputError(f"{name}: no such card; there are {', '.join(table)}, or a .toml file")
    try:
        return _own(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: not a description of a card: {reason}") from None


def card_of(kind: str) -> Card | None:
    """The card of the table that a device's kind, as the driver names it, is of."""
    cards = (Card(**values) for values in tomllib.loads(TABLE.read_text()).values())
    return next((card for card in cards if f"{card.name} ".startswith(f"{kind} ")), None)


def _own(values: Mapping[str, Any]) -> Card:
    (first, *others) = values.values() or (None,)
    if isinstance(first, dict) and not others:  # as in the table, under a name
        values = first
    fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Card)}
    for name in fields.keys() - values.keys():
        raise ValueError(f"{name} is missing")
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{name} is no field of one; they are {', '.join(fields)}")
        wanted = (int, float) if fields[name] is float else fields[name]
        if not isinstance(value, wanted) or (not isinstance(value, str) and value <= 0):
            kind = "a text" if fields[name] is str else "a number above 0"
            raise ValueError(f"{name} is {value!r}, expected {kind}")
    return Card(**values)
