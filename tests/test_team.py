"""Processes that divide what a stage draws: the same bits, one failure for all, no one waiting.

Most is tried on threads that meet where processes would exchange, the rest on processes.
"""

import csv
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import normal, standardised
from pipeline import ROOT, command, contents, run, set_params
from tiny import save_tiny_models, tiny_config, write_vae

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import SamplingConfig
from scorevae.data.arrays import Split
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation.bound import likelihood_bound
from scorevae.evaluation.ode import ode_log_likelihood
from scorevae.evaluation.part import Subject
from scorevae.runtime import team as module
from scorevae.runtime.state import BatchFolder
from scorevae.runtime.team import ALONE, Team
from scorevae.sampling import draw_in_batches
from scorevae.sde import SDE, VPSDE, LinearRate

Work = Callable[[Team], Any]
Together = Callable[[int, Work], list]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    """What each of so many makes of the work; an exception where it raised one."""

    def start(count: int, work: Work) -> list:
        words: list[Any] = [None] * count
        barrier, own = threading.Barrier(count, timeout=20), threading.local()
        turn = threading.Lock()  # one at a time: torch's forward derivatives share a level

        def gathered(word: object, count: int) -> list:
            words[own.rank] = pickle.dumps(word)
            turn.release()
            try:
                barrier.wait()
                found = [pickle.loads(said) for said in words]
                barrier.wait()
            finally:
                turn.acquire()
            return found

        def one(rank: int) -> object:
            own.rank = rank
            with turn:
                try:
                    return work(Team(rank, count))
                except Exception as error:  # noqa: BLE001 (whatever it is)
                    return error

        monkeypatch.setattr(module, "_gathered", gathered)
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(one, range(count)))

    return start


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("items", [0, 1, 3, 7])
def test_a_divided_loop_is_the_loop(together: Together, count: int, items: int) -> None:
    """Catches an item lost, twice, out of order, or computed by a process whose turn it is not."""
    found = together(
        count, lambda team: list(team.map(lambda item: (item, team.rank), range(items)))
    )
    assert found == [[(item, item % count) for item in range(items)]] * count


def test_one_alone_exchanges_nothing() -> None:
    """Catches a process group that a stage in one process would have to wait for."""
    assert list(ALONE.map(str, [1, 2])) == ["1", "2"]
    assert ALONE.exchange(7) == [7]
    with pytest.raises(ValueError, match="own"), ALONE.agreeing():
        raise ValueError("own")
    assert not torch.distributed.is_initialized()


def test_a_loop_within_an_item_is_its_process_s_own(together: Together) -> None:
    """Catches an exchange that only the process of the item comes to: all would wait."""

    def work(team: Team) -> list:
        def outer(item: int) -> list:
            return list(team.map(lambda inner: (item, inner, team.rank), range(3)))

        return list(team.map(outer, range(3)))

    expected = [[(item, inner, item % 2) for inner in range(3)] for item in range(3)]
    assert together(2, work) == [expected, expected]


def raising(error: Exception, item: int) -> int:
    """Fails at the second item."""
    if item == 1:
        raise error
    return item


@pytest.mark.parametrize(("error", "kind", "said"), [
    (Unavailable("no labels"), Unavailable, "no labels"),
    (UserError("lower it"), UserError, "lower it"),
    (MemoryError("4 GiB"), MemoryError, "4 GiB"),
    (RuntimeError("can't allocate memory"), MemoryError, "can't allocate memory"),
    (ValueError("odd"), UserError, "ValueError: odd"),
])  # fmt: skip
def test_what_an_item_raises_all_raise(
    together: Together, error: Exception, kind: type, said: str
) -> None:
    """Catches others that wait for the one that failed, or take its failure for another kind."""

    def work(team: Team) -> list:
        with pytest.raises(kind) as caught, team.agreeing():
            list(team.map(partial(raising, error), range(4)))
        return [str(caught.value), *team.map(str, range(2))]

    assert together(2, work) == [[said, "0", "1"]] * 2


def test_what_a_part_takes_for_null_all_do(together: Together) -> None:
    """Catches a failure that its process handles in the block, while the others leave it."""

    def work(team: Team) -> str:
        with team.agreeing():
            try:
                return str(list(team.map(partial(raising, Unavailable("none")), range(4))))
            except Unavailable as reason:
                return f"null: {reason}"

    assert together(2, work) == ["null: none"] * 2


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("others", ["at the end", "in a loop", "in an exchange"])
def test_what_one_alone_meets_ends_the_block_of_all(
    together: Together, failing: int, others: str
) -> None:
    """Catches processes that go on apart: each next exchange would be of other things."""

    def block(team: Team) -> None:
        if team.rank == failing:
            raise UserError("a full disk")
        if others == "in a loop":
            list(team.map(str, range(4)))
        if others == "in an exchange":
            team.exchange(0)

    def work(team: Team) -> list:
        with pytest.raises(UserError, match="^a full disk$"), team.agreeing():
            block(team)
        return team.exchange(team.rank)

    assert together(2, work) == [[0, 1], [0, 1]]


def test_different_ways_are_noticed(together: Together) -> None:
    """Catches results of one loop that are taken for those of another."""

    def work(team: Team) -> list:
        with pytest.raises(UserError, match="went different ways"), team.agreeing():
            list(team.map(str, range(4 if team.rank else 6)))
        return team.exchange(team.rank)

    assert together(2, work) == [[0, 1], [0, 1]]


# --- what is divided -------------------------------------------------------------------------


Z, X_1 = normal((7, 2), 3), normal((7, 2), 4)
SAMPLING = SamplingConfig(
    sampler="sde_dpm_solver_pp", grid="log_snr", steps=4, corrector_snr=0.1, noise_scale=1,
    clip=False,
)  # fmt: skip


def drawn(sde: SDE, team: Team, **settings: Any) -> torch.Tensor:  # noqa: ANN401
    """Seven draws from p(x|z), a stochastic sampler, at most three at a time."""
    return draw_in_batches(
        lambda rows: standardised(sde).posterior.score(Z[rows]), sde, X_1, SAMPLING,
        device=torch.device("cpu"), batch=3, seed=5, share=team.map, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_batches_are_drawn_to_the_same_bits(sde: SDE, together: Together, count: int) -> None:
    """Catches noise that depends on the number of processes, and an order by process."""
    expected = drawn(sde, ALONE)
    for found in together(count, partial(drawn, sde)):
        assert torch.equal(found, expected)


def test_each_batch_is_kept_once(sde: SDE, together: Together, tmp_path: Path) -> None:
    """Catches a batch that is kept by none, and one that another number does not find again."""
    kept, done = BatchFolder(tmp_path), []
    expected = drawn(sde, ALONE)
    together(2, partial(drawn, sde, kept=kept))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-3.npy", "3-6.npy", "6-7.npy"]
    (tmp_path / "3-6.npy").unlink()
    changed = torch.zeros(3, 2).double()  # would not be drawn
    kept.save(slice(0, 3), changed)
    for found in together(3, partial(drawn, sde, kept=kept, report=done.append)):
        assert torch.equal(found, torch.cat([changed, expected[3:]]))
    assert sorted(done) == [3, 3, 3, 6, 6, 6, 7, 7, 7]


@pytest.mark.parametrize("latent", [False, True])
def test_the_bound_has_the_same_bits(sde: SDE, together: Together, latent: bool) -> None:
    """Catches draws of another noise, exchanged or lost; not those of more than one batch."""
    oracle = standardised(sde)
    posterior = oracle.posterior if latent else oracle.prior_score
    x_0 = (torch.arange(10).reshape(5, 2) * 25 / 127.5 - 1).double()

    def bounds(team: Team) -> list[torch.Tensor]:
        found = likelihood_bound(
            x_0, sde=sde, posterior=posterior, repeats=2, draws=2, batch=3, seed=0,
            share=team.map,
        )  # fmt: skip
        return [bound.per_image for bound in found if bound is not None]

    expected = bounds(ALONE)
    assert len(expected) == 1 + latent
    for found in together(3, bounds):
        assert all(map(torch.equal, found, expected))


def test_the_ode_has_the_same_bits(together: Together) -> None:
    """Catches batches exchanged or lost, and evaluations that do not come with them."""
    sde = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)
    x_0 = (torch.arange(10).reshape(5, 2) * 25 / 127.5 - 1).double()

    def likelihood(team: Team) -> tuple[torch.Tensor, float]:
        found = ode_log_likelihood(
            x_0, sde=sde, prior=standardised(sde).prior_score, repeats=2, batch=2, seed=0,
            tolerance=1e-3, share=team.map,
        )  # fmt: skip
        return found.per_image, found.evaluations

    expected, evaluations = likelihood(ALONE)
    for found, count in together(2, likelihood):
        assert torch.equal(found, expected)
        assert count == evaluations


class Recording(Team):
    """One alone, and the items of the loops that it went through."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[object] = []

    def map(self, function: Callable, items: Sequence, /) -> Iterator:
        self.items += items
        return map(function, items)


def test_a_team_divides_what_a_subject_decodes_and_nobody_else(tmp_path: Path) -> None:
    """Catches a part whose batches one process draws, and a model divided without being told."""
    save_tiny_models(tmp_path)
    config, team = tiny_config(**{"reconstruct.batch": 3}), Recording()
    write_vae(tmp_path / "vae.safetensors", config)
    nothing = Split(np.zeros((1, 8, 8, 1), np.uint8), None)
    subject = Subject(config, tmp_path, tmp_path, nothing, nothing, tmp_path, team=team)
    z = torch.zeros(7, subject.model.latent)
    images = subject.model.decode(z)
    assert team.items == [slice(0, 3), slice(3, 6), slice(6, 7)]
    alone = ScoreVAE.load(tmp_path, sampling=config.sampling, batch=3)
    assert torch.equal(alone.decode(z), images)
    assert len(team.items) == 3


# --- processes -------------------------------------------------------------------------------


TWO = {"SCOREVAE_PROCESSES": "2", "ACCELERATE_USE_CPU": "1"}
SCRIPT = """
import os, signal, sys, time
from scorevae.errors import UserError
from scorevae.runtime.processes import spread
from scorevae.runtime.team import team

try:
    spread()
except UserError as error:
    sys.exit(f"Error: {error}")
how = sys.argv[1]

def item(number):
    if number == 3 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3 and how == "fails":
        raise UserError("of an item")
    return number, os.getpid()

try:
    with team() as processes:
        found = list(processes.map(item, range(5)))
        print([number for number, _ in found], len({process for _, process in found}))
except UserError as error:
    time.sleep(1 if processes.writes else 0)  # the others could end meanwhile
    sys.exit(f"Error: {error}")
"""


@pytest.mark.slow
@pytest.mark.faults  # of the launcher, whose end races with that of the processes
@pytest.mark.parametrize(("how", "code", "output", "errors"), [
    ("works", 0, "[0, 1, 2, 3, 4] 2\n", []),
    ("fails", 1, "", ["Error: of an item"]),
    ("killed", 1, "", [  # by the other process, by torchrun, or by both
        "Error: another process of this stage was ended; give the same command again",
        "Error: process 1: it was killed, and left no word",
    ]),
])  # fmt: skip
def test_two_processes(
    tmp_path: Path, how: str, code: int, output: str, errors: list[str]
) -> None:
    """Catches one that waits for one that is gone, and an end without a word, or with two."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | TWO | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, str(script), how], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, output)
    said = done.stderr.splitlines()
    assert bool(said) == bool(errors)
    assert set(said) <= set(errors)


@pytest.mark.parametrize("stage", ["reconstruct", "evaluate"])
def test_no_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Catches a stage that runs in one process whatever is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCOREVAE_PROCESSES", "two")
    set_params()
    result = run(stage)
    assert result.exit_code == 1
    assert result.output == "Error: SCOREVAE_PROCESSES=two: give auto, or a number from 1\n"


def start(stage: str, **environment: str) -> subprocess.Popen:
    """A stage in two processes on the CPU."""
    return subprocess.Popen(
        command(stage), env=os.environ | TWO | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


RECONSTRUCTIONS = Path("results/digits/reconstructions")


def images() -> dict[str, bytes]:
    """What reconstruct has written."""
    return {path.name: path.read_bytes() for path in RECONSTRUCTIONS.iterdir()}


@pytest.mark.faults
def test_an_interrupted_reconstruct_goes_on_to_the_bits_of_one_process(workspace: Path) -> None:
    """Catches finished batches that are lost, and other bits for other processes."""
    set_params(**{"reconstruct.batch": 20, "protocols.default.steps": 20})
    assert run("reconstruct").exit_code == 0
    expected = images()
    shutil.rmtree(RECONSTRUCTIONS)
    cut = start("reconstruct")
    for line in cut.stdout:
        if line.startswith("reconstruct: "):
            break
    cut.send_signal(signal.SIGTERM)
    _, errors = cut.communicate()
    assert cut.returncode == 1
    (error,) = errors.splitlines()
    assert "reconstruct: stopped by SIGTERM; " in error
    assert not RECONSTRUCTIONS.exists()
    again = start("reconstruct")
    told, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "reconstruct: resuming at" in told
    assert images() == expected


@pytest.mark.faults
def test_two_processes_evaluate_to_the_same_numbers(workspace: Path) -> None:
    """Catches a part that goes another way in several processes, and times of unknown number."""
    before = contents(workspace)
    found = start("evaluate")
    _, errors = found.communicate()
    assert found.returncode == 0, errors
    after = contents(workspace)
    timed = re.compile("report|samplers|guidance|costs")
    assert [n for n in before if after[n] != before[n] and not timed.search(n)] == []
    for name in ("samplers", "guidance"):
        first, second = (
            read(tree[f"results/digits/tables/{name}.csv"]) for tree in (before, after)
        )
        assert first == second
    costs = after["results/digits/tables/costs.csv"].decode().splitlines()[1:]
    assert {row.rpartition(",")[2] for row in costs} == {"2"}
    assert b"by one process of 2." in after["results/digits/report.html"]


def read(table: bytes) -> list[dict[str, str]]:
    """The rows of a table without their seconds."""
    rows = csv.DictReader(table.decode().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
