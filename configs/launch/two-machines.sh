#!/usr/bin/env bash
# The same on each machine, with its number: configs/launch/two-machines.sh 0 host-a:1234 ...
#
# The first machine is 0, and host-a:1234 an address of it that the others reach. The output folder
# is one that both see. SIGTERM (`kill`) on one of them stops both after the step in hand, which is
# saved; the same commands continue. Ctrl-C ends without saving: the last checkpoint is what is left.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 NUMBER HOST:PORT [--config.key=value ...]" >&2
  exit 2
fi
export JAX_PROCESS_ID=$1 JAX_COORDINATOR_ADDRESS=$2 JAX_NUM_PROCESSES=2
shift 2
exec uv run --extra cuda13 python -m justdubit_jax.train --config configs/dub.py "$@"
