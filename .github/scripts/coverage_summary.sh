#!/usr/bin/env bash
# Which lines the tests ran, on the job's page.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
coverage report --format=markdown >> "$GITHUB_STEP_SUMMARY"
