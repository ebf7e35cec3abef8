# Sourced by the other scripts: makes the virtual environment $1 if it is missing, installs the package with the extras
# $2 into it, and enters it. A torch that the environment already has is kept; PYTHON names another interpreter.
if [ ! -x "$1/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$1"
fi
source "$1/bin/activate"
export PYTHONDONTWRITEBYTECODE=  # else every process compiles torch and transformers anew
python - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 or newer expected: set PYTHON=python3.12 and delete the environment")
PY
if [[ "${2:-}" != *vision* ]]; then  # torchvision chooses a torch of its own
  python -c "import torch" 2>/dev/null || pip install --quiet --no-compile "torch==${TORCH:-2.13.0}"  # known to work; without CUDA where pip has it so
fi
pip install --quiet --no-compile --editable ".${2:-}"
