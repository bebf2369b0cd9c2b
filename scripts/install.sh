#!/usr/bin/env bash
# Makes the virtual environment $VENV and installs this project into it, with the pinned versions of constraints.txt.
# usage: PYTHON=python3 VENV=.venv TORCH=auto|cpu|cuda scripts/install.sh ".[train,dev]"
set -euo pipefail

target=${1:-.}
: "${PYTHON:=python3}" "${VENV:=.venv}" "${TORCH:=auto}"

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "PYTHON must be Python 3.11 or newer, got $("$PYTHON" --version 2>&1) (try: make PYTHON=python3.12 ...)" >&2
  exit 2
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
python=$VENV/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

if [ "$TORCH" = auto ]; then
  if nvidia-smi >/dev/null 2>&1; then TORCH=cuda; else TORCH=cpu; fi
fi
version=$(sed -n 's/^torch==//p' constraints.txt)
installed=$("$python" -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])' 2>/dev/null || true)
if [ "$installed" != "$version" ]; then
  echo "installing PyTorch $version ($TORCH)"
  case $TORCH in
    cuda) pip install --quiet "torch==$version" ;;
    cpu)
      # On Linux the plain package brings gigabytes of CUDA. The build without it is called "+cpu"; where pip's own
      # sources lack it, uv knows where PyTorch keeps it.
      if [ "$(uname -s)" != Linux ]; then
        pip install --quiet "torch==$version"
      elif ! pip install --quiet "torch==$version+cpu" 2>/dev/null; then
        pip install --quiet uv
        "$VENV/bin/uv" pip install --quiet --python "$python" --torch-backend cpu "torch==$version"
      fi
      ;;
    *) echo "TORCH must be auto, cpu or cuda, got $TORCH" >&2; exit 2 ;;
  esac
fi
echo "installing latent-shift ($target)"
pip install --quiet --constraint constraints.txt --editable "$target"
