#!/usr/bin/env bash
# Ends the job unless it was started by hand or by a pull request from this very repository. As the
# runner's own pre-job hook (docs/ci.md) it also stops workflows that a fork wrote for itself.
set -euo pipefail
exec python3 - <<'PY'
import json
import os
import sys
from pathlib import Path

started_by = os.environ["GITHUB_EVENT_NAME"]
event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
if started_by == "pull_request":
    head = (event["pull_request"]["head"]["repo"] or {}).get("full_name", "a deleted fork")
    if head != os.environ["GITHUB_REPOSITORY"]:
        sys.exit(f"refused: the code of this pull request is from {head}; this runner runs "
                 f"{os.environ['GITHUB_REPOSITORY']} only")
elif started_by != "workflow_dispatch":
    sys.exit(f"refused: {started_by} may not start a job on this runner, only workflow_dispatch "
             "and pull_request")
PY
