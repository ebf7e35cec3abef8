#!/usr/bin/env bash
# Run linter, type checker, import contract and tests, in their own environment. `-m slow` runs the slow tests instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv-dev "[dev,vision]"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
ruff check .
ruff format --check .
mypy
lint-imports --no-logo
pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
