"""The workflows in .github: the rules they keep, and their commands run for real on a CPU."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
import yaml
from mlflow import MlflowClient
from pipeline import ROOT, make_clone, stages_run
from servers import free_port, mlflow_server

from scorevae.runtime.runs import EXPERIMENT, PARENT_TAG

SCRIPTS = ROOT / ".github/scripts"
TEXTS = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = [job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()]
STEPS = [step for job in JOBS for step in job["steps"]]
COMMANDS = [step["run"] for step in STEPS if "run" in step]
TRIGGERS = WORKFLOWS["reproduce.yml"][True]  # the key `on`, a truth value in YAML 1.1
REPRODUCE = WORKFLOWS["reproduce.yml"]["jobs"]["reproduce"]
REPOSITORY = "team/scorevae"
GUIDE = (ROOT / "docs/ci.md").read_text()


def test_actions_are_pinned_by_commit() -> None:
    """Catches a tag or branch, which its owner can move, and a pin that tells no version."""
    lines = [line for text in TEXTS.values() for line in text.splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in STEPS)
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_commands_are_scripts_or_targets() -> None:
    """Catches shell in YAML, which no test runs, and ${{ }} in it, which may hold more shell."""
    makefile = (ROOT / "Makefile").read_text()
    assert COMMANDS
    for command in COMMANDS:
        script = re.fullmatch(r"\.github/scripts/(\w+\.sh)", command)
        target = re.fullmatch(r"make ([\w./-]+)", command)
        if script:
            assert os.access(SCRIPTS / script[1], os.X_OK), command
        else:
            assert target, command
            assert target[1] == ".venv/installed" or f"\n{target[1]}: " in makefile, command


def test_every_script_is_used_and_stops_at_the_first_failure() -> None:
    """Catches a script that goes on after a failed command, and one that nothing calls."""
    scripts = sorted(SCRIPTS.iterdir())
    assert {f".github/scripts/{path.name}" for path in scripts} <= set(COMMANDS)
    for path in scripts:
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "\nset -euo pipefail\n" in text


def test_workflows_may_only_read_and_end() -> None:
    """Catches a token that may write, one left in the checkout, and jobs that hang for ever."""
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        assert "concurrency" in workflow
    for job in JOBS:
        assert "permissions" not in job
        assert job["timeout-minutes"] > 0
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout")]
    assert len(checkouts) == len(WORKFLOWS)
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_tests_run_on_every_supported_python() -> None:
    """Catches a version that pyproject.toml promises and nothing tests."""
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    job = WORKFLOWS["test.yml"]["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == promised
    assert {"make check", "make coverage"} <= {step.get("run") for step in job["steps"]}


def test_guide_names_what_the_workflow_reads() -> None:
    """Catches a variable or secret that nobody is told to set."""
    read = re.findall(r"\$\{\{ (?:vars|secrets)\.(\w+)", TEXTS["reproduce.yml"])
    assert read
    assert set(read) <= set(re.findall(r"`(\w+)`", GUIDE))


def pull_request(head: str | None, label: str = "reproduce") -> dict[str, Any]:
    """The event of a label on a pull request whose branch lies in the repository ``head``."""
    repo = None if head is None else {"full_name": head}
    return {"pull_request": {"head": {"repo": repo}}, "label": {"name": label}}


# Name, content, whether the job may start by its label, whether its code may run on the runner.
EVENTS = [
    ("workflow_dispatch", {"inputs": {}}, True, True),
    ("pull_request", pull_request(REPOSITORY), True, True),
    ("pull_request", pull_request(REPOSITORY, "bug"), False, True),
    ("pull_request", pull_request("fork/scorevae"), False, False),
    ("pull_request", pull_request(None), False, False),
    ("pull_request_target", pull_request("fork/scorevae"), False, False),
    ("push", {"ref": "refs/heads/main"}, False, False),
    ("workflow_run", {"workflow_run": {}}, False, False),
]


@pytest.mark.parametrize(("name", "event", "starts", "runs"), EVENTS)
def test_forks_are_refused(
    name: str, event: dict[str, Any], starts: bool, runs: bool, tmp_path: Path
) -> None:
    """Catches a fork's code that gets past the job's condition, or past the machine's own hook.

    The hook is for a fork that brings a workflow without the condition.
    """
    context = {"event_name": name, "repository": REPOSITORY, "event": event}

    def value(match: re.Match[str]) -> str:
        found: Any = context
        for part in match[1].split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return repr(found)

    expression = REPRODUCE["if"].replace("&&", "and").replace("||", "or")
    assert eval(re.sub(r"github\.([\w.]+)", value, expression)) is starts
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event))
    done = script(
        "refuse_forks.sh", tmp_path, GITHUB_EVENT_NAME=name, GITHUB_EVENT_PATH=str(path),
        GITHUB_REPOSITORY=REPOSITORY,
    )  # fmt: skip
    assert (done.returncode == 0) is runs, done.stderr
    assert done.stderr.startswith("" if runs else "refused: ")


def test_triggers_of_reproduce() -> None:
    """Catches a trigger that nobody's hand is behind, and one that gives secrets to forks."""
    assert set(TRIGGERS) == {"workflow_dispatch", "pull_request"}
    assert TRIGGERS["pull_request"] == {"types": ["labeled"]}
    assert REPRODUCE["runs-on"] == ["self-hosted", "gpu"]
    commands = [step.get("run", "") for step in REPRODUCE["steps"]]
    guard = commands.index(".github/scripts/refuse_forks.sh")
    assert not any(commands[:guard]), "something runs before forks are refused"


def script(name: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run one script in a folder, with nothing of this process's environment but the PATH."""
    full = base_environment(folder) | environment
    return subprocess.run([SCRIPTS / name], cwd=folder, env=full, capture_output=True, text=True)


def base_environment(home: Path) -> dict[str, str]:
    """What a runner's service starts with: no virtual environment, no Git identity, no GPU."""
    here = Path(sys.executable).parent
    path = [entry for entry in os.environ["PATH"].split(os.pathsep) if Path(entry) != here]
    passed = {name: os.environ[name] for name in ("LANG", "PYENV_ROOT") if name in os.environ}
    return passed | {
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # its list of fonts takes seconds to make
    }


def link_environment(checkout: Path) -> None:
    """This process's environment as the checkout's .venv, which make then finds installed."""
    folder = checkout / ".venv"
    folder.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / name).symlink_to(Path(sys.prefix) / name)
    for name in ("uv", "installed"):
        (folder / name).touch()


@pytest.mark.parametrize(("name", "environment", "message"), [
    ("reproduce.sh", {"OVERRIDES": "beta=1 --force"}, "override '--force': write key=value"),
    ("reproduce.sh", {"OVERRIDES": "beta=0.02\n-x=1"}, "override '-x=1': write key=value"),
    ("reproduce.sh", {"OVERRIDES": "beta"}, "override 'beta': write key=value"),
    ("reproduce.sh", {"OVERRIDES": "o.yaml:beta=1"}, "override 'o.yaml:beta=1': write key=value"),
    ("reproduce.sh", {"NAME": "--temp"}, "name '--temp': use letters"),
    ("reproduce.sh", {"NAME": "a;b"}, "name 'a;b': use letters"),
    ("assert_cuda.sh", {}, "no CUDA device for PyTorch (?s:.)*nvidia-smi"),
    ("prepare.sh", {"SCOREVAE_HOME": "./kept"}, ".* is inside the checkout"),
])  # fmt: skip
def test_job_is_refused(name: str, environment: dict, message: str, tmp_path: Path) -> None:
    """Catches inputs taken for orders, days on a CPU, and state that the next checkout deletes."""
    link_environment(tmp_path)
    done = script(name, tmp_path, **environment)
    assert done.returncode == 1
    assert re.match(message, done.stderr), done.stderr
    assert not (tmp_path / "kept").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_found(tmp_path: Path) -> None:
    """Catches a job that refuses a machine that could do it."""
    link_environment(tmp_path)
    done = script("assert_cuda.sh", tmp_path, CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stderr
    assert torch.cuda.get_device_name(0) in done.stdout


def prepare(checkout: Path, kept: Path) -> None:
    """Prepare a job in a checkout, as actions/checkout leaves it; then look where records go."""
    (checkout / ".dvc").mkdir(parents=True)
    (checkout / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    link_environment(checkout)
    variables = checkout / "variables"
    done = script("prepare.sh", checkout, SCOREVAE_HOME=str(kept), GITHUB_ENV=str(variables))
    assert done.returncode == 0, done.stderr
    assert f"MLFLOW_TRACKING_URI=sqlite:///{kept}/mlflow.db\n" in variables.read_text()
    # MLflow keeps a connection to a file that was moved away.
    with closing(sqlite3.connect(kept / "mlflow.db")) as connection:
        experiments = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
    assert experiments[EXPERIMENT] == (kept / "mlartifacts").as_uri()


@pytest.mark.faults
def test_jobs_prepare_after_one_another(tmp_path: Path, empty_database: Path) -> None:
    """Catches jobs that fail ever after one was killed, and artifacts put into the checkout.

    The first job finds what one left that was killed before it made the experiment; the others
    what one left that was killed after that, or a database that was deleted without its artifacts.
    """
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(empty_database, kept)
    prepare(tmp_path / "first", kept)
    prepare(tmp_path / "second", kept)
    for lost in ("mlartifacts", "mlflow.db"):
        (kept / "mlartifacts").mkdir(exist_ok=True)
        (kept / lost).rename(tmp_path / lost)
        prepare(tmp_path / f"without_{lost}", kept)


@pytest.mark.faults
def test_steps_of_test(tmp_path: Path) -> None:
    """Catches a coverage target that measures nothing, and a summary that does not arrive."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "src", "tests"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    link_environment(tmp_path)
    summary = tmp_path / "summary.md"
    environment = base_environment(tmp_path) | {
        "GITHUB_STEP_SUMMARY": str(summary),
        "PYTHONPATH": str(tmp_path / "src"),
        "TESTS": "tests/test_gaussian.py",
    }
    for command in ("make coverage", ".github/scripts/coverage_summary.sh"):
        assert command in COMMANDS
        words = command.replace(".github/scripts", str(SCRIPTS)).split()
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # All of the module that the chosen test is about, and nothing of some others.
    shares = dict(re.findall(r"src/scorevae/(\S+?)\.py +\|.*?(\d+)%", summary.read_text()))
    assert shares["gaussian"] == "100"
    assert "0" in shares.values()


class Runner:
    """A self-hosted runner, as far as the commands of reproduce.yml can tell."""

    def __init__(self, folder: Path, upstream: Path, values: dict[str, str]) -> None:
        self.checkout, self.kept = folder / "work/scorevae", folder / "kept"
        self.summary, event = folder / "summary.md", folder / "event.json"
        event.write_text(json.dumps({"inputs": {}}))
        texts = [text for step in REPRODUCE["steps"] for text in step.get("env", {}).values()]
        expressions = re.findall(r"\$\{\{ (.*?) \}\}", "\n".join(texts))
        assert set(values) <= set(expressions), "an expression that the workflow does not use"
        self._values = dict.fromkeys(expressions, "") | values
        self._variables = folder / "env"
        self._upstream = upstream
        self._environment = base_environment(folder) | {
            "SCOREVAE_HOME": str(self.kept),
            "GITHUB_EVENT_NAME": "workflow_dispatch",
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_REPOSITORY": REPOSITORY,
            "GITHUB_RUN_ID": "17",
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_ENV": str(self._variables),
        }

    def check_out(self) -> None:
        """What actions/checkout does: clone or empty the checkout, at a detached commit."""
        git = ["git", "-c", "advice.detachedHead=false", "-C", str(self.checkout)]
        if not self.checkout.exists():
            clone = ["git", "clone", "--quiet", str(self._upstream), str(self.checkout)]
            subprocess.run(clone, check=True)
        (self.checkout / ".git/index.lock").unlink(missing_ok=True)
        for command in (["clean", "-ffdxq"], ["reset", "-q", "--hard"]):
            subprocess.run([*git, *command], check=True)
        subprocess.run([*git, "checkout", "--quiet", "--detach", "HEAD"], check=True)
        link_environment(self.checkout)

    def start(self, step: dict[str, Any], log: Path, **extra: str) -> subprocess.Popen[bytes]:
        """Start the command of one step as GitHub does, in a group of its own."""
        environment = self._environment | extra
        if self._variables.exists():
            lines = self._variables.read_text().splitlines()
            environment |= dict(line.split("=", 1) for line in lines)
        for name, text in step.get("env", {}).items():
            environment[name] = re.sub(r"\$\{\{ (.*?) \}\}", lambda m: self._values[m[1]], text)
        with log.open("wb") as file:
            return subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=self.checkout, env=environment, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    def run(self, first: str, last: str, log: Path) -> str:
        """Run the steps from one script to another; what the last one said. Without CUDA."""
        steps = REPRODUCE["steps"]
        commands = [step.get("run", "") for step in steps]
        chosen = slice(*(commands.index(f".github/scripts/{name}") for name in (first, last)))
        for step in [*steps[chosen], steps[chosen.stop]]:
            if "run" in step and "assert_cuda" not in step["run"]:
                assert self.start(step, log).wait() == 0, f"{step['run']}:\n{log.read_text()}"
        return log.read_text()

    def artifact(self) -> list[Path]:
        """The files that the workflow uploads."""
        (upload,) = (s for s in STEPS if "upload-artifact" in s.get("uses", ""))
        return [self.checkout / name for name in upload["with"]["path"].split()]


def server_of_the_guide(folder: Path, port: int) -> AbstractContextManager[Any]:
    """The server that docs/ci.md tells people to start, on a free port."""
    (text,) = re.findall(r"```sh\n(mlflow server .*?)```", GUIDE, re.DOTALL)
    assert "--port 5000" in text
    environment = base_environment(folder) | {"SCOREVAE_HOME": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", "-c", text.replace("5000", str(port))]
    return mlflow_server(command, port, folder, environment)


PRIOR_STEPS = 150  # a few seconds: long enough to be killed in


@pytest.mark.faults
def test_steps_of_reproduce(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> None:
    """Catches a job that loses work when its runner dies, or results on the way to their place.

    The runner dies while the prior trains; the job, run again, goes on, and its results are in the
    summary, the artifact, the DVC remote and MLflow. A third attempt finds everything done. A
    second machine, without a server, gets everything from the remote.
    """
    folder = tmp_path_factory.mktemp("runner")
    remote, other = tmp_path_factory.mktemp("remote"), tmp_path_factory.mktemp("other")
    log = folder / "log"
    settings = {
        "presets.digits.prior.training.steps": PRIOR_STEPS,
        "presets.digits.prior.training.validate_every": PRIOR_STEPS,
        "presets.digits.test_images": 20,
        "evaluate.classifier_images": 100,
    }
    clone = make_clone(tmp_path, empty_database, **settings)
    clone.run("dvc", "remote", "add", "--quiet", "--default", "storage", str(remote))
    clone.commit()
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with server_of_the_guide(folder, port):
        values = {
            "inputs.overrides": "beta=0.02\n presets.digits.latent=5",
            "vars.MLFLOW_TRACKING_URI": address,
            "steps.results.outputs.artifact-url": "https://example.invalid/artifact",
        }
        runner = Runner(folder, clone.folder, values)
        runner.check_out()
        runner.run("refuse_forks.sh", "prepare.sh", log)
        (step,) = (s for s in REPRODUCE["steps"] if "reproduce.sh" in s.get("run", ""))
        dying = runner.start(step, log, SCOREVAE_SAVE_SECONDS="0.1")
        while not list(runner.kept.glob("state/train_prior/*/*.pt")):
            assert dying.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(dying.pid, signal.SIGKILL)
        assert dying.wait() == -signal.SIGKILL

        runner.check_out()
        output = runner.run("refuse_forks.sh", "reproduce.sh", log)
        assert re.search(rf"train_prior/prior: resuming at \d+ of {PRIOR_STEPS}", output), output
        assert "download" not in stages_run(output)
        assert [path for path in runner.artifact() if not path.exists()] == []
        files = [path for path in runner.artifact() if path.is_file()]
        kept = {str(path.relative_to(runner.checkout)): path.read_bytes() for path in files}
        runner.run("summary.sh", "push.sh", log)
        runner.check_out()
        assert stages_run(runner.run("prepare.sh", "reproduce.sh", log)) == []
        check_records(MlflowClient(tracking_uri=address))
    summary = runner.summary.read_text()
    assert re.search(r"\| results/digits/metrics.json \| scorevae\.l2 ", summary), summary
    assert re.search(r"\| params.yaml \| beta +\| 0\.01 +\| 0\.02 +\|", summary), summary
    assert "(https://example.invalid/artifact)" in summary
    locked = yaml.safe_load(kept["dvc.lock"])["stages"]["train_prior"]["outs"]
    md5 = {out["path"]: out["md5"] for out in locked}["models/digits/prior.safetensors"]
    assert (remote / "files/md5" / md5[:2] / md5[2:]).is_file()

    # The results adopted, as the guide says, and asked for on a machine that has nothing.
    for name, content in kept.items():
        (clone.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (clone.folder / name).write_bytes(content)
    clone.commit()
    elsewhere = Runner(other, clone.folder, {})
    elsewhere.check_out()
    output = elsewhere.run("prepare.sh", "reproduce.sh", other / "log")
    assert stages_run(output) == []
    assert [path for path in elsewhere.artifact() if not path.exists()] == []
    database = MlflowClient(tracking_uri=f"sqlite:///{elsewhere.kept}/mlflow.db")
    experiment = database.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == (elsewhere.kept / "mlartifacts").as_uri()


def check_records(client: MlflowClient) -> None:
    """One parent for all attempts of the job, finished, with metrics and figures."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.data.tags[PARENT_TAG] == "run-17"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["beta"] == "0.02"
    assert "scorevae/l2" in parent.data.metrics
    assert client.list_artifacts(parent.info.run_id, "figures")
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    # Only the first attempt ran download; the parent is nevertheless one.
    assert {"download", "evaluate"} <= {run.info.run_name for run in children}
