#!/usr/bin/env bash
# Sets up the environment where that is still to do, then runs the tests on two processes.
# Arguments go to pytest: tools/run_tests.sh tests/test_packaging.py -k wheel
# VISATTN_TEST_JOBS=N runs N processes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/setup_env.sh")
cd "$root"
# The environment may contain another checkout of this project; use this checkout.
if [[ -n ${VISATTN_VENV:-} ]]; then
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
fi
# Processes that each start a thread per core slow each other down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n "${VISATTN_TEST_JOBS:-2}" "$@"
