#!/usr/bin/env bash
# Metrics and parameters against the commit BASE, and where the figures are, on the job's page.
# GitHub shows no embedded images there, hence the link to the artifact.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
base=${BASE:-HEAD}

{
  echo "## Metrics against ${base:0:10}"
  echo
  dvc metrics diff --md --all "$base"
  echo "## Parameters against ${base:0:10}"
  echo
  dvc params diff --md "$base"
  echo "[Figures, curves, metrics, params.yaml and dvc.lock](${ARTIFACT_URL:-})"
} >> "$GITHUB_STEP_SUMMARY"
