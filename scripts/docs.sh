#!/usr/bin/env bash
# The documentation site into site/, in an environment of its own; a warning is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh .venv-docs "[docs]"
export HF_HUB_OFFLINE=1
python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs site "$@"
echo "site/index.html"
