#!/usr/bin/env bash
# Sets up the environment where that is still to do, then runs a demo: segmentation, or detection
# where DEMO says so. Arguments go to the demo: tools/run_demo.sh --help
set -euo pipefail

case ${DEMO:-segmentation} in
  segmentation | demo) demo=segmentation ;;
  detection | demo_detection) demo=detection ;;
  *) echo "error: DEMO is segmentation or detection, got '$DEMO'" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/setup_env.sh")
cd "$root"
# The environment may contain another checkout of this project; use this checkout.
if [[ -n ${VISATTN_VENV:-} ]]; then
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" -m demo "$demo" "$@"
