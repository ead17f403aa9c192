"""One process of several that train together, for test_processes.py; takes the config's flags.

Prints the noise that each of its samples gets, so that the test sees that no two share it.
"""

import functools
import sys

import jax

from justdubit_jax import cli, train
from justdubit_jax.devices import sharding
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import make_batches, prepare_training
from justdubit_jax.weights.checkpoint import open_checkpoint

sharding._SMALLEST_SHARDED = 2  # the toy's weights are all below it
config = cli.parse_config(sys.argv)
train.main(config)

run = settings.read(config)
mesh = sharding.make_mesh(*run.mesh)
training = prepare_training(run, open_checkpoint(run.model_path).config, mesh)
group, _, batch = next(make_batches(training, train.read_data(run)[0]))
spread = functools.partial(jax.make_array_from_process_local_data, sharding.batch(mesh))
draw = jax.jit(
    lambda batch: training.objective.draw(jax.random.key(0), batch, 2),
    out_shardings=sharding.batch(mesh),
)
for shard in draw(jax.tree.map(spread, batch)).video_noise.addressable_shards:
    for noise in shard.data:
        print("noise", float(noise[0, 0]))
