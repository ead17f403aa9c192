"""What a run needs, from the compiled step: the toy's, and the 19B model's without a GPU."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.commands import ONE_DEVICE, REPO

from justdubit_jax.errors import InputError
from justdubit_jax.planning import remat
from justdubit_jax.planning.advice import advice, check_fits
from justdubit_jax.planning.memory import Program, compile_step, least_bytes
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.training.prepare import recomputing


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


@pytest.mark.deep
@pytest.mark.parametrize(
    "recompute, kept, least",
    [
        ("True", "their inputs", 60),
        # Several programs are compiled to choose.
        ("auto", "their inputs and the attention's outputs", 70),
    ],
)
def test_the_19b_model_is_planned_from_its_config_alone(recompute, kept, least):
    values = json.loads((Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text())
    assert values["transformer"]["num_layers"] == 48
    command = [sys.executable, "-m", "justdubit_jax.train", "--config", "configs/dub.py"]
    command += ["--config.model.model_path=tests/ltx-2-19b-dev.config.json", "--dry-run"]
    command += [f"--config.optimization.enable_gradient_checkpointing={recompute}"]
    done = subprocess.run(
        [*command, "--device-memory", "85GB"],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=ONE_DEVICE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1,233,125,376" in done.stdout  # the LoRA's parameters, as its published key list has
    assert "7040 video (3520 of the reference), 242 audio (121), 1024 text" in done.stdout
    fits = re.search(r"fits: ([\d.]+) GB of 85.0 GB", done.stdout)
    assert fits and least < float(fits[1]) < 81
    assert f"kept of the blocks: {kept}\n" in done.stdout
    assert "stood in" in done.stdout


SIZES = {"full": 1, "attention": 2, "keys": 3, "queries": 4}  # in least_bytes of them all


def test_what_fits_is_kept(toy, monkeypatch):
    """Between what one choice takes and the next, the first one stays; below all, the last."""
    training, shape = toy.plan.training, toy.plan.shape
    kept = {name: recomputing(training, name) for name in SIZES}
    unit = max(least_bytes(choice, shape) for choice in kept.values()) + 1
    tried: list[str] = []

    def compiled(training, shape, options):
        tried.append(training.objective.execution.remat)
        memory = dataclasses.replace(toy.plan.memory, workspace=0)
        rest = SIZES[tried[-1]] * unit - memory.total
        memory = dataclasses.replace(memory, workspace=rest)
        return Program(toy.run, dataclasses.replace(toy.plan, memory=memory))

    monkeypatch.setattr(remat, "compile_step", compiled)

    def chosen(limit):
        tried.clear()
        made, program = keeping_what_fits(training, shape, limit)
        assert (program is None) == (made.objective.execution.remat == "full")
        return made.objective.execution.remat

    assert chosen(None) == "full" and chosen(0) == "full" and not tried
    for name, size in SIZES.items():
        assert chosen(int((size * unit + 1) / 0.95) + 1) == name  # all but a twentieth
    assert tried == ["queries"]


@pytest.mark.deep
def test_keeping_more_takes_more(toy):
    training, shape = toy.plan.training, toy.plan.shape
    sizes = [compile_step(recomputing(training, x), shape).plan.memory.total for x in SIZES]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(SIZES)
