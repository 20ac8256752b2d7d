#!/usr/bin/env bash
# The whole pipeline as one experiment. OVERRIDES holds key=value pairs for params.yaml, separated
# by blanks; NAME is the experiment's name, here and in MLflow. Called again after a kill, it goes
# on where the training had last saved.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

name=${NAME:-run-${GITHUB_RUN_ID:-local}}
if [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9_-]*$ ]]; then
  echo "name '$name': use letters, digits, - and _" >&2
  exit 1
fi
options=(--name "$name" --pull)

IFS=$' \t\r\n' read -r -d '' -a overrides <<< "${OVERRIDES:-}" || true
for override in "${overrides[@]}"; do
  if [[ ! $override =~ ^[A-Za-z0-9_.]+=.+$ ]]; then
    echo "override '$override': write key=value, without blanks, as in beta=0.02" >&2
    exit 1
  fi
  options+=("--set-param=$override")
done

# DVC skips an unchanged stage whose data are missing, and the next one then fails for want of
# them: that is allowed only where all data can be had from the cache or the remote.
if dvc checkout --quiet 2> /dev/null || dvc pull --quiet; then
  options+=(--allow-missing)
else
  echo "Some data of dvc.lock are neither in the cache nor on a remote: they are made anew."
fi

# A job that is run again finds the experiment of its first attempt, whose name DVC would refuse.
if [[ -n $(git for-each-ref "refs/exps/*/*/$name") ]]; then
  dvc exp remove --quiet "$name"
fi
exec dvc exp run "${options[@]}"
