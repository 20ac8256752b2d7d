"""interruption: a stage notices that the DVC which started it has gone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from scorevae.runtime.interruption import stop_requests

# The two processes that a stage is seen from. Under DVC the stage has DVC_STAGE, and DVC has not.
STAGE = """
import sys, time
from scorevae.runtime.interruption import stop_requests
with stop_requests() as stopping:
    print("ready", flush=True)
    until = time.monotonic() + float(sys.argv[1])
    while stopping() is None and time.monotonic() < until:
        time.sleep(0.01)
    print(stopping(), flush=True)
"""
DVC = """
import json, os, subprocess, sys
subprocess.run(sys.argv[2:], env={**os.environ, **json.loads(sys.argv[1])})
"""
DIRECTLY = [sys.executable, "-c", STAGE]
# `exit` behind the command keeps every shell from putting the command in its own place.
THROUGH_A_SHELL = ["/bin/sh", "-c", '"$0" -c "$1" "$2"; exit $?', sys.executable, STAGE]


def start(command: list[str], variables: dict[str, str], seconds: float) -> subprocess.Popen:
    """A process in DVC's place that has the stage run, until the stage watches it."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC, json.dumps(variables), *command, str(seconds)],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert dvc.stdout.readline() == "ready\n"
    return dvc


@pytest.mark.parametrize("command", [DIRECTLY, THROUGH_A_SHELL], ids=["directly", "shell"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stage_notices_the_end_of_dvc(command: list[str], number: signal.Signals) -> None:
    """Catches a stage that trains on for nothing, where a shell stands between it and DVC."""
    with start(command, {"DVC_STAGE": "train_prior"}, seconds=20) as dvc:
        dvc.send_signal(number)
        assert dvc.communicate()[0] == "the end of dvc\n"


def test_stage_goes_on_while_dvc_does() -> None:
    """Catches a stage that takes some other process for a lost DVC."""
    with start(THROUGH_A_SHELL, {"DVC_STAGE": "train_prior"}, seconds=0.2) as dvc:
        assert dvc.communicate()[0] == "None\n"


def test_stage_without_dvc_outlives_its_parent() -> None:
    """Catches a training under nohup that stops when its terminal is closed."""
    with start(DIRECTLY, {}, seconds=1) as parent:
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == "None\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_asks_a_training_to_stop(number: signal.Signals) -> None:
    """Catches a training that the closing of its terminal ends unsaved, where SIGTERM saves."""
    before = signal.getsignal(number)
    with stop_requests() as stopping:
        assert stopping() is None
        signal.raise_signal(number)
        assert stopping() == number.name
    assert signal.getsignal(number) is before


def test_nohup_protects_a_training() -> None:
    """Catches a training that stops for a hang-up although it was told to ignore it."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert stopping() is None
    finally:
        signal.signal(signal.SIGHUP, former)
