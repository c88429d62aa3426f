#!/usr/bin/env bash
# Sets up the environment where that is still to do, then runs the demo: tools/demo.py, or the one
# that DEMO names (demo_detection). Arguments go to it: tools/run_demo.sh --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/setup_env.sh")
cd "$root"
# Another environment may hold another checkout of this project; this one is meant.
if [[ -n ${VISATTN_VENV:-} ]]; then
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" "tools/${DEMO:-demo}.py" "$@"
