"""Where weights lie, and how a batch is shared by processes: two real ones of two devices each."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from justdubit_jax.devices import processes, sharding
from justdubit_jax.errors import InputError

PROCESS = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from justdubit_jax.devices import processes, sharding
port, index = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
mesh = sharding.make_mesh(2, 2)
own = processes.share(mesh, "abc")
assert own == [[(0, "a"), (1, "b")], [(2, "c"), (3, "c")]][index], own
batch = processes.spread(mesh, [{"x": np.full((1, 3), ord(item))} for _, item in own])
assert batch["x"].shape == (4, 3)
moved = jax.jit(lambda x: x + x.sum(), out_shardings=sharding.batch(mesh))(batch["x"])
total = 3 * sum(map(ord, "abcc"))
assert [row[0, 0] - total for row in processes.own_rows(moved)] == [ord(item) for _, item in own]
assert processes.any_process(index == 1) and not processes.any_process(False)
"""


def test_a_process_holds_the_rows_of_its_devices():
    options = "--xla_force_host_platform_device_count=2"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(20000 + os.getpid() % 20000), str(index)],
            env=os.environ | {"XLA_FLAGS": options},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors


def test_rows_come_back_in_order():
    mesh = sharding.make_mesh(2, 4)
    own = processes.share(mesh, range(5))
    assert own == [(row, min(row, 4)) for row in range(8)]
    batch = processes.spread(mesh, [(np.full((1, 2), item), None) for _, item in own])
    assert batch[0].sharding == sharding.batch(mesh)
    doubled = jax.jit(lambda x: 2 * x, out_shardings=sharding.batch(mesh))(batch[0])
    got = [rows[0][0, 0] for rows in processes.own_rows((doubled, None))]
    assert got == [2 * item for _, item in own]


def test_a_weight_is_cut_along_its_first_divisible_axis():
    where = functools.partial(sharding.weight, sharding.make_mesh(1, 8))
    assert where((4096, 16384), stacked=False).spec == P("fsdp")
    assert where((48, 4096, 16384), stacked=True).spec == P(None, "fsdp")
    assert where((48, 4095, 16384), stacked=True).spec == P(None, None, "fsdp")
    assert where((4095, 16383), stacked=False).spec == P()
    assert where((8, 4095, 16383), stacked=True).spec == P()  # not even the eight blocks
    assert where((64, 64), stacked=False).spec == P()  # too small to be worth a gather
    whole = functools.partial(sharding.weight, sharding.make_mesh(8, 1))
    assert whole((4096, 16384), stacked=False).spec == P()


def test_bytes_and_scales_of_a_row_lie_together():
    where = functools.partial(sharding.weight, sharding.make_mesh(1, 8), stacked=True)
    for width in (8192, 256):
        assert where((48, 4096, width), whole_rows=True).spec == P(None, "fsdp")
        assert where((48, 4095, width), whole_rows=True).spec == P()


def test_a_shortened_array_is_whole_where_it_does_not_divide():
    place = sharding.weight(sharding.make_mesh(1, 8), (4095, 4096), stacked=False)
    assert place.spec == P(None, "fsdp")
    assert sharding.shortened(place, (4095, 16)).spec == P(None, "fsdp")
    assert sharding.shortened(place, (4095, 12)).spec == P(None, None)
    assert sharding.shortened(place, (4095,)).spec == P(None)


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(InputError, match="3 x 3 devices do not fit in the 8 that there are"):
        sharding.make_mesh(3, 3)
