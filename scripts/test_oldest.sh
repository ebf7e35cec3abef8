#!/usr/bin/env bash
# Test training, data and full runs with the oldest libraries that setup.cfg allows, in their own environment.
# Its torch includes the CUDA libraries, about 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_CONSTRAINT=scripts/oldest.txt TORCH=2.6.0 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
source scripts/environment.sh .venv-oldest "[test]"
[ $# -gt 0 ] || set -- tests/losses tests/tasks tests/inference tests/models/test_students.py tests/training/test_trainer.py tests/test_methods.py tests/distillation/test_teacher_cache.py \
  tests/experiments/test_run.py tests/training/test_checkpoint.py tests/training/test_group_sampling.py tests/training/test_nonfinite.py tests/training/test_arguments.py
pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
