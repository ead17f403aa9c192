"""The kernels of a compiled program: what each does, reads and writes, and about how long.

An estimate: a kernel takes as long as its arithmetic at the rate of its kind, as its bytes at the
memory's, or as a launch, whichever is longest. Nothing is run.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from justdubit_jax.planning.cards import Card
from justdubit_jax.planning.hlo import Array, Instruction, Program

LAUNCH = 4e-6  # seconds that the smallest kernel takes, one launched after the other
_COLLECTIVE_LAUNCH = 8e-6
_OWN_CODE = "justdubit_jax/", "optax/"

# What costs nothing by itself.
_FREE = frozenset(
    (
        *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota"),
        *("after-all", "partition-id", "replica-id", "optimization-barrier"),
    )
)
COLLECTIVES = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, copy or collective, run `times` a program."""

    kind: str
    name: str
    loop: str  # the loops that it is in
    times: int
    operations: float  # of one run
    bytes: float  # read and written, or sent and received
    seconds: float  # of one run
    waits: float  # of them, those in which nothing else is done
    shape: str  # of its result
    lines: tuple[str, ...]  # of code, innermost first

    @property
    def total(self) -> float:
        """Seconds in which the program waits for it."""
        return self.times * self.waits


def kernels_of(program: Program, card: Card, devices: int = 1) -> list[Kernel]:
    """The kernels of a program for one of so many devices, in the order of their schedule."""
    return list(_Reader(program, card, devices).computation(program.entry, 1, ""))


@dataclasses.dataclass(frozen=True)
class _Cost:
    kind: str
    operations: float
    bytes: float
    rate: float  # operations a second


class _Reader:
    def __init__(self, program: Program, card: Card, devices: int):
        self._program, self._card, self._devices = program, card, devices

    def computation(self, name: str, times: int, loop: str) -> Iterator[Kernel]:
        """In one stream, beside which one of collectives runs.

        Copies that XLA starts beside other kernels are run in turn with them: it puts a loop's
        kernels into command buffers, in which nothing ran beside anything (docs/gpu-record.md).
        """
        body = self._program.computations[name]
        now, until = 0.0, 0.0
        running: dict[str, tuple[Kernel, float]] = {}  # what was started, and when it ends
        for one in body.values():
            if one.opcode in _FREE:
                continue
            if one.opcode.endswith("-done"):
                if found := running.pop(one.operands[0], None):
                    kernel, end = found
                    waits = max(0.0, end - now)
                    now += waits
                    yield dataclasses.replace(kernel, waits=waits)
                continue
            if inner := self._inside(one, times, loop):
                inside = list(self.computation(*inner))
                # Seconds within this computation, whose own trips multiply them.
                now += sum(kernel.total for kernel in inside) / times
                yield from inside
                continue
            kernel = self._kernel(one, body, times, loop)
            if one.opcode.endswith("-start") and one.opcode.startswith(COLLECTIVES):
                until = max(now, until) + kernel.seconds
                running[one.name] = kernel, until
                continue
            now += kernel.waits
            yield kernel

    def _inside(self, one: Instruction, times: int, loop: str) -> tuple[str, int, str] | None:
        """The computation that an instruction runs, how often, and in which loop."""
        if one.opcode == "while" and (body := one.called("body")):
            found = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes)
            return body, times * (int(found[1]) if found else 1), f"{loop}/{one.name}"
        if one.opcode == "call" and (called := one.called("to_apply") or one.called("calls")):
            return called, times, loop
        if one.opcode == "conditional":
            branches = re.findall(r"(?:true_computation=|false_computation=|branch_computations=\{)"
                                  r"%?([\w.\-]+)", one.attributes)  # fmt: skip
            return (branches[0], times, loop) if branches else None
        return None

    def _kernel(
        self, one: Instruction, body: dict[str, Instruction], times: int, loop: str
    ) -> Kernel:
        cost = self._cost(one, body)
        seconds = max(cost.operations / cost.rate, cost.bytes / self._card.memory_rate, LAUNCH)
        if cost.kind.startswith(COLLECTIVES):
            seconds = cost.bytes / self._card.link + _COLLECTIVE_LAUNCH
        return Kernel(
            kind=cost.kind,
            name=one.name,
            loop=loop,
            times=times,
            operations=cost.operations,
            bytes=cost.bytes,
            seconds=seconds,
            waits=seconds,
            shape=" ".join(_text(array) for array in _results(one)[:2]),
            lines=self._lines(one),
        )

    def _lines(self, one: Instruction) -> tuple[str, ...]:
        """The lines of code that a kernel comes from; of a fusion, of each of its parts."""
        inner = self._program.computations.get(one.called("calls") or "", {}).values()
        found: dict[str, None] = {}
        for part in (one, *inner):
            for words in _OWN_CODE:
                for line in self._program.lines_of_code(part.frame, words):
                    found.setdefault(line)
                    break
        return tuple(found)[:6]

    def _cost(self, one: Instruction, body: dict[str, Instruction]) -> _Cost:
        operands = [body[name] for name in one.operands if name in body]
        if one.opcode.startswith(COLLECTIVES):
            return _Cost(_collective(one.opcode), 0, self._moved(one, operands), 1)
        if one.opcode in ("fusion", "fusion-start") and (called := one.called("calls")):
            return self._fusion(one, self._program.computations[called])
        if one.opcode == "custom-call":
            return self._custom(one, body)
        read = sum(operand.bytes for operand in operands)
        written = one.bytes
        if one.opcode == "dynamic-update-slice":
            read = written = operands[1].bytes
        elif one.opcode in ("dynamic-slice", "slice", "gather"):
            read = written
        kind = "copy" if one.opcode.startswith(("copy", "async")) else one.opcode
        return _Cost(kind.removesuffix("-start"), 0, read + written, 1)

    def _moved(self, one: Instruction, operands: Sequence[Instruction]) -> float:
        """Bytes that a device sends, by rings."""
        own = sum(operand.bytes for operand in operands)
        share = (self._devices - 1) / self._devices
        if one.opcode.startswith("all-gather"):
            whole = one.bytes - (own if one.opcode.endswith("-start") else 0)
            return whole * share
        return (2 * own if one.opcode.startswith("all-reduce") else own) * share

    def _fusion(self, one: Instruction, inner: dict[str, Instruction]) -> _Cost:
        for part in inner.values():
            if part.opcode == "custom-call":
                return self._custom(part, inner)
        moved = sum(_read(inner, index) for index in range(len(one.operands))) + _written(inner)
        dots = [part for part in inner.values() if part.opcode == "dot"]
        if dots:
            operations = sum(_dot(part, inner) for part in dots)
            return _Cost("product (not cuBLAS)", operations, moved, self._card.products)
        kind = "async copy" if one.opcode == "fusion-start" else "fusion"
        return _Cost(kind, 0, moved, 1)

    def _custom(self, one: Instruction, body: dict[str, Instruction]) -> _Cost:
        operands = [body[name] for name in one.operands if name in body]
        moved = sum(operand.bytes for operand in operands)
        moved += sum(array.bytes for array in _results(one))
        card = self._card
        if "cublas" in one.target:
            dtype = operands[0].arrays[0].dtype
            rate = card.products * card.rate_of(dtype)
            kind = "product in fp8" if dtype.startswith("f8") else "product"
            return _Cost(kind, _dot(one, body), moved, rate)
        if "fmha" in one.target:
            backward = "Backward" in one.target
            found = re.search(r'"dimensions": ?\[([^\]]*)\]', one.attributes)
            scores = math.prod(int(n.strip('" ')) for n in found[1].split(",")) if found else 0
            width = operands[0].arrays[0].sizes[-1]
            if backward:  # two products of the forward pass again, and five of its gradients' four
                return _Cost("attention backward", 10 * scores * width, moved, card.flash_gradient)
            return _Cost("attention", 4 * scores * width, moved, card.flash)
        if "conv" in one.target.lower():
            rate = card.convolutions * card.rate_of(operands[0].arrays[0].dtype)
            return _Cost("convolution", _convolution(one, operands), moved, rate)
        return _Cost(one.target or one.opcode, 0, moved, 1)


def _results(one: Instruction) -> list[Array]:
    """Without the workspace, bytes in one axis, that stands behind a library call's."""
    found = [a for a in one.arrays if not (a.dtype in ("s8", "u8") and len(a.sizes) == 1)]
    return found or list(one.arrays)


def _collective(opcode: str) -> str:
    return next(name for name in COLLECTIVES if opcode.startswith(name))


def _dot(one: Instruction, body: dict[str, Instruction]) -> float:
    """Operations of a product, by cuBLAS or XLA's own."""
    left = body[one.operands[0]].arrays[0]
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes) or re.search(
        r"lhs_contracting_dims=\{([^}]*)\}", one.attributes
    )
    axes = [int(n.strip('" ')) for n in found[1].split(",") if n.strip()] if found else []
    return 2 * one.arrays[0].count * math.prod(left.sizes[axis] for axis in axes)


def _convolution(one: Instruction, operands: Sequence[Instruction]) -> float:
    found = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
    kernel = operands[1].arrays[0]
    if not found or len(found[1]) != len(kernel.sizes):
        return 0
    return 2 * one.arrays[0].count * kernel.count / kernel.sizes[found[1].index("o")]


def _read(inner: dict[str, Instruction], index: int) -> float:
    """Bytes that a fusion reads of its parameter: of a slice, the slice."""
    parameter = next(
        part
        for part in inner.values()
        if part.opcode == "parameter" and part.operands[0].strip() == str(index)
    )
    names, total = [parameter.name], 0.0
    for name in names:  # which grows
        for part in inner.values():
            if name not in part.operands:
                continue
            first = part.operands[0] == name
            if part.opcode == "bitcast":
                names.append(part.name)
            elif first and part.opcode in ("dynamic-slice", "slice", "gather"):
                total += part.bytes
            elif (first and part.opcode == "dynamic-update-slice") or part.opcode == "tuple":
                continue  # written in place
            else:
                return parameter.bytes
    return min(total, parameter.bytes)


def _written(inner: dict[str, Instruction]) -> float:
    """Bytes that a fusion writes: of an update in place, the update."""
    root = next(part for part in inner.values() if part.is_root)
    parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for part in parts:
        while part.opcode == "bitcast":
            part = inner[part.operands[0]]
        if part.opcode == "dynamic-update-slice":
            total += inner[part.operands[1]].bytes
        elif part.opcode != "parameter":
            total += part.bytes
    return total


def _text(array: Array) -> str:
    return f"{array.dtype}[{','.join(map(str, array.sizes))}]"
