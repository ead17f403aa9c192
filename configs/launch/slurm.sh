#!/usr/bin/env bash
# Two machines of eight GPUs: sbatch configs/launch/slurm.sh --config.output_dir=/shared/run ...
#
# srun starts one process a machine, and JAX finds the others by Slurm's own variables. Five minutes
# before the time is up, or when the job is preempted, Slurm sends SIGTERM: the step in hand is
# finished and saved, and the job queues again to go on from there. The output folder is one that
# all machines see, and so is the repository, with `uv sync --extra cuda13` run in it once. Python is
# started without uv, which would hand on a signal that Slurm has already sent to it.
#SBATCH --job-name=dub
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
srun .venv/bin/python -m justdubit_jax.train --config configs/dub.py \
  --config.mesh.fsdp=8 "$@"
code=$?
# 143: stopped by the signal, with a checkpoint.
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
