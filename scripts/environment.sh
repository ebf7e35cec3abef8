# Sourced by the other scripts: creates the virtual environment $1 if it is missing, installs the package with the extras $2
# and activates it. A torch that is already installed is kept; PYTHON names another interpreter.
if [ ! -e "$1/bin/activate" ]; then  # is written last
  "${PYTHON:-python3}" -m venv --clear "$1"
fi
source "$1/bin/activate"
export PYTHONDONTWRITEBYTECODE=  # otherwise every process compiles torch and transformers again
python - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 or newer expected: set PYTHON=python3.12 and delete the environment")
PY
if [[ "${2:-}" != *vision* ]]; then  # torchvision chooses its own torch
  python -c "import torch" 2>/dev/null || pip install --quiet --no-compile "torch==${TORCH:-2.13.0}"  # a tested version; without CUDA where pip's build has none
fi
pip install --quiet --no-compile --editable ".${2:-}"
