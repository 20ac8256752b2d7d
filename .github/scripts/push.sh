#!/usr/bin/env bash
# Data, weights and results to the DVC remote, with the run cache, so that other machines need not
# train what was trained here.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

if [[ -z $(dvc config core.remote || true) ]]; then
  echo "No DVC remote is configured: the data stay in this runner's cache." |
    tee -a "$GITHUB_STEP_SUMMARY"
  exit 0
fi
dvc push --run-cache
