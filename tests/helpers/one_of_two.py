"""One process of several that train together, for test_processes.py; takes the config's flags.

Prints the noise that each of its samples gets, so that the test sees that no two share it.
"""

import functools
import sys

import jax

from justdubit_jax import cli, train
from justdubit_jax.data.batches import Batches
from justdubit_jax.devices import sharding
from justdubit_jax.training import objective, settings

sharding._SMALLEST_SHARDED = 2  # the toy's weights are all below it
config = cli.parse_config(sys.argv)
train.main(config)

run = settings.read(config)
mesh = sharding.make_mesh(*run.mesh)
buckets, _ = train.read_data(run)
bucket, _, batch = next(Batches(buckets, run.batch_size, 0, 0))
spread = functools.partial(jax.make_array_from_process_local_data, sharding.batch(mesh))
draw = jax.jit(
    lambda batch: objective.draw(jax.random.key(0), batch, run.sampling, 0.0, 2),
    out_shardings=sharding.batch(mesh),
)
for shard in draw(jax.tree.map(spread, batch)).video_noise.addressable_shards:
    for noise in shard.data:
        print("noise", float(noise[0, 0]))
