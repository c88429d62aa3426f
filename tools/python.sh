# Sourced by torchrun.sh and srun.sh. Sets TOOLS, this folder, and PYTHON, the environment's Python.

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON="${VISATTN_VENV:-$TOOLS/../.venv}/bin/python"
if [ ! -x "$PYTHON" ]; then PYTHON=python; fi
