"""The files of configs/launch: what they start is ours, and what they set is what it reads."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.commands import REPO

from justdubit_jax import cli
from justdubit_jax.devices import processes

LAUNCH = REPO / "configs" / "launch"


@pytest.fixture
def alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)


@pytest.fixture
def started(alone, monkeypatch) -> list[dict[str, int | None]]:
    """What JAX would be started with."""
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **one: calls.append(one))
    return calls


def run(script: str, folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A script with programs that print how they were called in the place of uv and Slurm's."""
    for name in ("uv", "srun", "scontrol"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*"\nenv | grep ^JAX_ | sort\n'
            f'[ {name} = scontrol ] || exit "${{CODE:-0}}"\n'
        )
        program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env={"PATH": path, "SLURM_JOB_ID": "77", **env},
        capture_output=True,
        text=True,
    )


def config_of(line: str) -> None:
    """Read the config of a command of train as it stands in a line."""
    cli.parse_config(["train", *re.findall(r"--config\S*", line.replace("--config ", "--config="))])


def test_two_machines_find_one_another(tmp_path, started, monkeypatch):
    done = run("two-machines.sh", tmp_path, "1", "host-a:1234", "--config.seed=7")
    command, *variables = done.stdout.splitlines()
    assert "python -m justdubit_jax.train" in command and command.endswith("--config.seed=7")
    config_of(command)
    for line in variables:
        monkeypatch.setenv(*line.split("=", 1))
    processes.start()
    assert started == [{"num_processes": 2, "process_id": 1}]
    assert os.environ["JAX_COORDINATOR_ADDRESS"] == "host-a:1234"
    assert run("two-machines.sh", tmp_path, "1").returncode == 2


@pytest.mark.parametrize("code, again", [("0", False), ("2", False), ("143", True)])
def test_a_slurm_job_that_was_stopped_queues_again(tmp_path, code, again):
    done = run("slurm.sh", tmp_path, "--config.seed=7", CODE=code)
    first, *rest = done.stdout.splitlines()
    assert first.startswith("srun .venv/bin/python -m justdubit_jax.train ")
    assert first.endswith("--config.seed=7")
    config_of(first)
    assert ("scontrol requeue 77" in rest) == again
    assert done.returncode == int(code)


def test_srun_is_noticed(started, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # the batch script itself is alone
    processes.start()
    assert not started
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    processes.start()
    assert started == [{"num_processes": None, "process_id": None}]


def test_the_pods_of_a_job_find_one_another(started, monkeypatch):
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["args"][0] == "justdubit_jax.train"
    cli.parse_config(container["args"])
    for variable in container["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
        else:
            index = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            monkeypatch.setenv(variable["name"], "1")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # as in every pod
    processes.start()
    assert started == [{"num_processes": job["spec"]["completions"], "process_id": 1}]
    name = job["metadata"]["name"]
    assert os.environ["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-0.{spec['subdomain']}:")
    assert spec["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["parallelism"] == job["spec"]["completions"]


def test_the_image_has_what_it_is_made_of():
    text = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-m"]' in text  # no shell, which would keep signals to itself
    extras = re.findall(r"--extra (\S+)", text)
    assert extras and all(f"{name} = " in (REPO / "pyproject.toml").read_text() for name in extras)
