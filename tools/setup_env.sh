#!/usr/bin/env bash
# Makes the environment in .venv, once, and prints the path of its Python on stdout.
#
# Everything comes from PyPI; no compiler is needed. Progress goes to stderr, the details to
# .venv/setup.log. A second run finds the stamp of the first run and does nothing. A run after an
# interrupted run continues. If two runs start at once, one waits for the other.
#
#   VISATTN_VENV=DIR     use this environment as it is, installing nothing into it
#   VISATTN_PYTHON=EXE   make .venv with this Python (3.10 or newer)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/setup.log
stamp_file=$venv/.visattn-stamp
# The disk space for unpacking: the environment, and the largest wheels beside it.
need_gb=9

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "setup: $*"
  exit 1
}

# An environment that somebody else made: it is checked and not changed.
use_other_environment() {
  local python
  python=$(cd "$1" 2>/dev/null && pwd || true)/bin/python
  [[ -x $python ]] || fail "VISATTN_VENV=$1 has no bin/python. Give the folder of an environment," \
    "or unset VISATTN_VENV to have one made in $venv."
  local missing
  missing=$("$python" - <<'PY'
import importlib.util
import sys

if sys.version_info < (3, 10):
    print(f'Python >= 3.10 (it has {sys.version.split()[0]})')
for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'timm', 'einops',
             'ftfy', 'regex', 'pkg_resources', 'pytest', 'xdist'):
    if importlib.util.find_spec(name) is None:
        print({'pkg_resources': 'setuptools<81', 'xdist': 'pytest-xdist'}.get(name, name))
PY
  ) || fail "VISATTN_VENV=$1: its Python does not run."
  [[ -z $missing ]] || fail "VISATTN_VENV=$1 lacks: ${missing//$'\n'/, }. Nothing was installed;" \
    "$python -m pip install -r $root/requirements.txt would do it, or unset VISATTN_VENV."
  printf '%s\n' "$python"
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

# The first Python that can also make environments with pip; otherwise the first recent Python.
find_python() {
  if [[ -n ${VISATTN_PYTHON:-} ]]; then
    is_recent "$VISATTN_PYTHON" ||
      fail "VISATTN_PYTHON=$VISATTN_PYTHON is not a Python 3.10 or newer that runs."
    printf '%s\n' "$VISATTN_PYTHON"
    return
  fi
  local name fallback=
  for name in python3.11 python3.12 python3.13 python3.10 python3 python; do
    is_recent "$name" || continue
    if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return
    fi
    fallback=${fallback:-$name}
  done
  [[ -n $fallback ]] || fail "no Python 3.10 or newer found (looked for python3.11, python3.12," \
    "python3.13, python3.10, python3). Install one, or name it: VISATTN_PYTHON=/path/to/python3"
  printf '%s\n' "$fallback"
}

# Changes if the packages to install change, if the checkout moves, or with another Python. Prints
# nothing if the environment's Python does not run.
stamp() {
  "$venv/bin/python" -I -S - "$root" <<'PY' 2>/dev/null || true
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f'{root} {sys.version}'.encode())
for name in ('requirements.txt', 'setup.py', 'pyproject.toml', 'visattn_dense_startup.pth',
             'tools/setup_env.sh'):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

is_ready() {
  local now
  [[ -f $stamp_file && -x $venv/bin/python ]] || return 1
  now=$(stamp)
  [[ -n $now && $now == "$(cat "$stamp_file")" ]]
}

# Runs a command with its output in the log; only the important lines are shown.
logged() {
  local line size shown='Downloading ([^ ]+)-[0-9][^ ]* \(([0-9]+)(\.[0-9])? ([MG])B\)'
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" 2>&1 </dev/null | while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    if [[ $line =~ $shown ]]; then
      size=${BASH_REMATCH[2]}${BASH_REMATCH[3]}
      if [[ ${BASH_REMATCH[4]} == G || ${BASH_REMATCH[2]} -ge 50 ]]; then
        say "      ${BASH_REMATCH[1]##*/}, $size ${BASH_REMATCH[4]}B"
      fi
    elif [[ $line == 'Installing collected packages'* ]]; then
      say '      unpacking'
    fi
  done
}

on_exit() {
  local code=$?
  rm -rf "$venv/tmp"
  [[ $code -ne 0 ]] || return 0
  say "setup: failed. The end of $log:"
  tail -n 15 "$log" | cut -c1-300 >&2
  if grep -q 'No space left on device' "$log"; then
    say "setup: the disk is full; about $need_gb GB are needed below $root."
  elif grep -qE 'Temporary failure in name resolution|NewConnectionError|Connection.*refused' "$log"
  then
    say 'setup: the package index could not be reached. Behind a proxy, set HTTPS_PROXY.'
  fi
  say 'setup: run the same command again to go on from here.'
}

check_disk() {
  local free_kb free_gb
  # If torch is installed, most of the space is in use already.
  compgen -G "$venv/lib/python3*/site-packages/torch/lib" >/dev/null && return
  free_kb=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
  free_gb=$((free_kb / 1024 / 1024))
  if ((free_gb < need_gb)); then
    fail "$free_gb GB free below $root, about $need_gb GB needed (torch with CUDA is most of it)." \
      'Make room, or clone to a larger disk.'
  fi
  say "setup: about 3 GB to download, $need_gb GB of disk ($free_gb GB free) and 3 GB of pip's cache;" \
    'a few minutes'
}

# Several ways to make an environment with pip, the usual way first.
make_venv() {
  local python=$1
  say "[1/4] environment in .venv, $("$python" --version 2>&1) ($(command -v "$python"))"
  if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    # --clear is not given: what an interrupted run has installed is kept.
    logged "$python" -m venv "$venv"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    logged "$python" -m virtualenv "$venv"
  elif "$python" -m pip --version >/dev/null 2>&1 &&
    logged "$python" -m venv --without-pip "$venv"; then
    # Debian and Ubuntu keep ensurepip in python3-venv; a pip of the system can stand in for it.
    logged "$python" -m pip install --progress-bar off --target \
      "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip
  else
    trap - EXIT
    fail "$python cannot make environments (no ensurepip). On Debian and Ubuntu:" \
      "sudo apt install python3-venv. Elsewhere: $python -m pip install --user virtualenv"
  fi
}

install_requirements() {
  local wanted=$root/requirements.txt
  # A compiled mmcv that is already installed is preferred; mmcv-lite would overwrite it.
  if "$venv/bin/python" -c 'import importlib.metadata as m; m.version("mmcv")' 2>/dev/null; then
    say '      a compiled mmcv is installed: mmcv-lite is left out'
    wanted=$venv/requirements-without-lite.txt
    grep -v '^mmcv-lite' "$root/requirements.txt" >"$wanted"
  fi
  logged "$venv/bin/python" -m pip install --progress-bar off --prefer-binary -r "$wanted"
}

# opencv-python links against libGL, which servers often lack. The headless build of the same version
# has the same cv2 without windows. It is installed over opencv-python, whose metadata stay, so pip
# finds the package that OpenMMLab needs. cv2/version.py says which of the two builds is there.
install_headless_opencv() {
  local version
  version=$("$venv/bin/python" - <<'PY'
import importlib.metadata as metadata
import re

wanted = metadata.version('opencv-python')
source = metadata.distribution('opencv-python').locate_file('cv2/version.py').read_text()
try:
    found = metadata.version('opencv-python-headless')
except metadata.PackageNotFoundError:
    found = None
if found != wanted or not re.search(r'^headless = True', source, re.MULTILINE):
    print(wanted)
PY
  )
  [[ -z $version ]] || logged "$venv/bin/python" -m pip install --progress-bar off --no-deps \
    --force-reinstall "opencv-python-headless==$version"
}

set_up() {
  [[ ! -e $venv || -d $venv ]] || fail "$venv is in the way: it is not a folder."
  local python=
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! is_recent "$venv/bin/python"; then
    python=$(find_python)
  fi
  check_disk
  rm -rf "$venv/tmp"
  # The wheels may not fit into /tmp, which is small and often in memory.
  mkdir -p "$venv/tmp"
  export TMPDIR=$venv/tmp
  # Packages of another system (ROS, conda) on these paths would count as installed.
  unset PYTHONPATH PYTHONHOME
  export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  printf '\n==== set-up of %s on %s\n' "$root" "$(date)" >>"$log"
  rm -f "$stamp_file"
  trap on_exit EXIT

  if [[ -n $python ]]; then
    make_venv "$python"
  else
    say "[1/4] environment in .venv, $("$venv/bin/python" --version)"
  fi
  logged "$venv/bin/python" -m pip install --progress-bar off 'pip>=24.1'
  say '[2/4] packages of requirements.txt'
  install_requirements
  say '[3/4] OpenCV without windows, and this checkout (editable)'
  install_headless_opencv
  logged "$venv/bin/python" -m pip install --progress-bar off --no-deps --no-build-isolation \
    --editable "$root"
  say '[4/4] does it import'
  logged "$venv/bin/python" -c 'import cv2, torch, torchvision, mmengine, timm, visattn_dense'
  stamp >"$stamp_file.partial"
  mv "$stamp_file.partial" "$stamp_file"
  say "setup: done in ${SECONDS} s"
}

if [[ -n ${VISATTN_VENV:-} ]]; then
  use_other_environment "$VISATTN_VENV"
  exit
fi
if ! is_ready; then
  if command -v flock >/dev/null; then
    exec 9>"$root/.setup.lock"
    flock -n 9 || { say 'setup: another set-up is at work here; waiting for it'; flock 9; }
  fi
  # The other run may have done everything.
  is_ready || set_up
fi
printf '%s\n' "$venv/bin/python"
