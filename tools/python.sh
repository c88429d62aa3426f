# Sourced by torchrun.sh and srun.sh: TOOLS, this folder, and PYTHON, the Python of the environment.

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON="${VISATTN_VENV:-$TOOLS/../.venv}/bin/python"
if [ ! -x "$PYTHON" ]; then PYTHON=python; fi
