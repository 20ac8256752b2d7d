"""Compiled functions: the same numbers, one shape, and as written where nothing can compile."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scorevae.errors import UserError
from scorevae.runtime import compiled
from scorevae.runtime.compiled import Compiled, compiling, replaying

SCRIPT = Path(__file__).with_name("compiled_steps.py")
OBJECTIVES = ("prior", "vae", "warm_start", "objective", "corrector", "diffusion_decoder")
FROZEN = ("warm_start", "objective", "corrector")  # those with a second graph


def compared(backend: str, steps: int, *names: str) -> dict[str, dict[str, Any]]:
    """What tests/compiled_steps.py says of each objective."""
    command = [sys.executable, str(SCRIPT), backend, str(steps), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uncompiled" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    results = [json.loads(line.removeprefix("result ")) for line in lines]
    return {result["objective"]: result for result in results}


def assert_equal(results: dict[str, dict[str, Any]], *names: str) -> None:
    assert list(results) == list(names)
    for name, result in results.items():
        # the goal, some ten roundings of float32; the weights have moved by a hundredth
        assert result["weights"] < 1e-5, result
        assert result["losses"] < 1e-5, result
        assert result["graphs"] == (2 if name in FROZEN else 1), result
        assert result["breaks"] == 0


@pytest.mark.slow
def test_compiled_training_is_the_same() -> None:
    """Catches a lost term, noise drawn inside, a graph that breaks, or one that is made anew.

    A hundred steps of the objective, gradient of a gradient included, through every transformation
    but the code generator.
    """
    assert_equal(compared("aot_eager", 100, "objective"), "objective")


@pytest.mark.faults
def test_every_objective_is_one_graph() -> None:
    """Catches the same in all the others, in two steps each."""
    assert_equal(compared("eager", 2, *OBJECTIVES), *OBJECTIVES)


@pytest.mark.faults
def test_compiled_decoding_is_the_same() -> None:
    """Catches times, latents or guidance that are constants of a graph, and one for each step."""
    assert_equal(compared("aot_eager", 0, "decode"), "decode")


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_gives_the_same_training() -> None:
    """Catches what the code generator does to it; five minutes on two slow cores."""
    assert_equal(compared("inductor", 100, "objective"), "objective")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[list[torch.Size]]:
    """The shapes of every graph that was compiled, by a compiler that leaves it as it is."""
    seen: list[list[torch.Size]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.append([x.shape for x in inputs])
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    return seen


def test_other_shapes_run_as_written(backends: list[list[torch.Size]]) -> None:
    """Catches minutes of compiling for the last batch, and the result of another shape."""
    function = Compiled(lambda x: 2 * x, "double")
    for rows in (4, 3, 4, 3):
        x = torch.arange(float(rows))
        assert torch.equal(function(x), 2 * x)
    with torch.no_grad():
        function(torch.ones(4))
    assert backends == [[torch.Size([4])]]


def broken(graph: object, inputs: object) -> Callable[..., Any]:
    raise RuntimeError("\nno compiler here\n  at line 5")


def test_without_a_compiler_it_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a run that dies of the compiler, and one that complains at every step and part."""
    monkeypatch.setattr(compiled, "BACKEND", broken)
    monkeypatch.setattr(compiled, "_told", set())
    double, triple = Compiled(lambda x: 2 * x, "double"), Compiled(lambda x: 3 * x, "triple")
    for _ in range(2):
        assert (double(torch.ones(())), triple(torch.ones(()))) == (2, 3)
    assert not double.active
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("double: runs uncompiled: ")
    assert "no compiler here" in line
    assert "SCOREVAE_COMPILE=0" in line


def test_errors_of_the_function_come_through(backends: list[list[torch.Size]]) -> None:
    """Catches a mistake, or memory that has run out, taken for a compiler that fails."""

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    def wrong(x: Tensor) -> Tensor:
        raise ValueError("wrong")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Compiled(full, "full", whole=False)(torch.ones(2))
    with pytest.raises(ValueError, match="wrong"):
        Compiled(wrong, "wrong", whole=False)(torch.ones(2))


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_graphs_of_a_cpu_are_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches another result, or a warning, where SCOREVAE_COMPILE=graphs finds no CUDA."""
    monkeypatch.setenv("SCOREVAE_COMPILE", "graphs")
    assert_equal(compared("inductor", 5, "vae"), "vae")


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a CPU that compiles by itself, whose bits would change, and a choice ignored."""
    monkeypatch.delenv("SCOREVAE_COMPILE", raising=False)
    assert [compiling("cpu"), compiling("cuda")] == [False, True]
    monkeypatch.setenv("SCOREVAE_COMPILE", "1")
    assert compiling("cpu")
    monkeypatch.setenv("SCOREVAE_COMPILE", "0")
    assert not compiling("cuda")
    assert not replaying()
    monkeypatch.setenv("SCOREVAE_COMPILE", "graphs")
    assert (compiling("cpu"), replaying()) == (True, True)
    monkeypatch.setenv("SCOREVAE_COMPILE", "yes")
    with pytest.raises(UserError, match="SCOREVAE_COMPILE=yes: give auto"):
        compiling("cpu")
