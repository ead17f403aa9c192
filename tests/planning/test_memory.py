"""What a run needs, from the compiled step: the toy's, and the 19B model's without a GPU."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.commands import ONE_DEVICE, REPO
from helpers.toy import config

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.errors import InputError
from justdubit_jax.planning.advice import advice, check_fits
from justdubit_jax.planning.memory import compile_step
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training, recomputing
from justdubit_jax.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def toy(demo, tmp_path_factory):
    run = settings.read(config(demo, tmp_path_factory.mktemp("plan")))
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, sharding.make_mesh(*run.mesh))
    return compile_step(training, train.read_data(run)[0][0].shape)


def test_the_parts_add_up_to_the_compiled_programs_own_analysis(toy):
    analysis = toy.run.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    total += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    memory = toy.plan.memory
    assert memory.total == total
    frozen = jax.tree.leaves(toy.plan.training.abstract.frozen)
    assert memory.base == sum(math.prod(x.shape) * 4 for x in frozen)
    assert memory.optimizer == 2 * memory.lora + 4  # Adam's moments and its count
    assert memory.gradients == memory.lora
    assert memory.activations > 0 and memory.workspace > 0


def test_what_does_not_fit_says_what_to_switch(toy):
    check_fits(toy.plan, None)
    check_fits(toy.plan, toy.plan.memory.total)
    with pytest.raises(InputError, match=r"a step needs .* in order of cost: .*bfloat16 \("):
        check_fits(toy.plan, toy.plan.memory.total - 1)
    switches = list(advice(toy.plan, 0))
    assert [left for _, left in switches] == sorted((left for _, left in switches), reverse=True)
    assert "smaller video" in switches[-1][0]


def test_the_19b_model_is_planned_from_its_config_alone():
    values = json.loads((Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text())
    assert values["transformer"]["num_layers"] == 48
    command = [sys.executable, "-m", "justdubit_jax.train", "--config", "configs/dub.py"]
    command += ["--config.model.model_path=tests/ltx-2-19b-dev.config.json", "--dry-run"]
    done = subprocess.run(
        [*command, "--device-memory", "80GB"],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=ONE_DEVICE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1,233,125,376" in done.stdout  # the LoRA's parameters, as its published key list has
    assert "7040 video (3520 of the reference), 242 audio (121), 1024 text" in done.stdout
    fits = re.search(r"fits: ([\d.]+) GB of 80.0 GB", done.stdout)
    assert fits and 60 < float(fits[1]) < 80
    assert "kept of the blocks: their inputs and the attention's outputs" in done.stdout
    assert "stood in" in done.stdout


def test_what_fits_is_kept(toy):
    """Between what one choice takes and the next, the first one stays; below all, the last."""
    training, shape = toy.plan.training, toy.plan.shape
    sizes = {}
    for remat in ("full", "attention", "keys", "queries"):
        sizes[remat] = compile_step(recomputing(training, remat), shape).plan.memory.total
    assert list(sizes.values()) == sorted(sizes.values()) and len(set(sizes.values())) == 4

    def chosen(limit):
        return keeping_what_fits(training, shape, limit).objective.execution.remat

    assert chosen(None) == "full" and chosen(0) == "full"
    for remat, size in sizes.items():
        assert chosen(size + 1) == remat
