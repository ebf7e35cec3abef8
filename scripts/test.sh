#!/usr/bin/env bash
# Lint, types, the import contract and tests, in an environment of their own. `-m slow` runs the cases left out.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv-dev "[dev,vision]"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
ruff check .
ruff format --check .
mypy
lint-imports --no-logo
pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
