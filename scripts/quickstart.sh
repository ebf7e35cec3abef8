#!/usr/bin/env bash
# Train a question-answering teacher, a student without distillation and a student with ITRD on two CPU cores, in a few minutes
# and without downloading models or data; print EM, F1, size and latency.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv
export HF_HUB_OFFLINE=1
itrd distill toy/t1-itrd "$@"
