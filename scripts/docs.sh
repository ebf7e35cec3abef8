#!/usr/bin/env bash
# Build the documentation site into site/, in its own environment; warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv-docs "[docs]"
export HF_HUB_OFFLINE=1
python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs site "$@"
echo "site/index.html"
