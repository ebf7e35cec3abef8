#!/usr/bin/env bash
# From nothing to a distilled question-answering student on two CPU cores, in a few minutes and without a download of
# models or data: teacher, student without distillation, student with ITRD; EM/F1, size and latency.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv
export HF_HUB_OFFLINE=1
itrd distill toy/t1-itrd "$@"
