#!/usr/bin/env bash
# What must outlive the job goes into SCOREVAE_HOME, outside the checkout, which actions/checkout
# empties: the DVC cache, the state of trainings, downloads, MLflow's records. The later steps get
# the variables by GITHUB_ENV.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

kept=$(realpath --canonicalize-missing "${SCOREVAE_HOME:-$HOME/scorevae}")
if [[ $kept/ == "$(pwd -P)"/* ]]; then
  echo "SCOREVAE_HOME=$kept is inside the checkout, which the next job empties: name a folder" \
    "elsewhere" >&2
  exit 1
fi
mkdir -p "$kept"
exec 9> "$kept/lock" # two runners of one machine may share the folder
flock 9

dvc config --local cache.dir "$kept/cache"

tracking=${MLFLOW_TRACKING_URI:-}
if [[ -z $tracking ]]; then
  tracking=sqlite:///$kept/mlflow.db
  # Where artifacts go is fixed when the experiment is made, by default inside the checkout. MLflow
  # is asked: a folder does not tell whether a job was killed before or after the experiment.
  python -c '
import sys
from pathlib import Path
from mlflow import MlflowClient

uri, artifacts = sys.argv[1:]
client = MlflowClient(tracking_uri=uri)
if client.get_experiment_by_name("scorevae") is None:
    client.create_experiment("scorevae", artifact_location=Path(artifacts).as_uri())
' "$tracking" "$kept/mlartifacts"
fi

{
  echo "SCOREVAE_STATE=$kept/state"
  echo "SCOREVAE_DOWNLOADS=$kept/downloads"
  echo "MLFLOW_TRACKING_URI=$tracking"
} >> "$GITHUB_ENV"
