"""A part that cannot be computed is null with a reason; nothing that it does loses the others."""

import dataclasses
import signal
import sys

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE
from test_parts import TOY, usual  # noqa: F401 (a fixture)

from scorevae.autoencoders.table import MODEL
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation import tsne as module
from scorevae.evaluation.part import Found, Part, Subject
from scorevae.evaluation.stage import analyse
from scorevae.evaluation.tsne import tsne

VECTORS = np.random.default_rng(0).normal(size=(40, 5))


def failing(error: Exception) -> Part:
    """A part that raises."""

    def compute(subject: Subject) -> Found:
        raise error

    return dataclasses.replace(TOY, name="failing", compute=compute)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("no toys"), "no toys"),
        (UserError("a file\nis missing"), "a file is missing"),
        (ValueError("n_components=2 must be"), "ValueError: n_components=2 must be"),
        (ZeroDivisionError(), "ZeroDivisionError: "),
        (torch.OutOfMemoryError("2.00 GiB"), "out of memory (2.00 GiB); in failing, lower"),
        (MemoryError(), "out of memory (no memory left); in failing, lower"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_part_raises_makes_it_null(
    usual: Subject,  # noqa: F811
    error: Exception,
    reason: str,
) -> None:
    """Catches a traceback in place of the comparison, and a null without its reason."""
    after = dataclasses.replace(TOY, name="after")
    found = analyse(usual, (TOY, failing(error), after), lambda step: None)
    assert set(found.found) == {TOY.name, "after"}
    assert found.unavailable["failing"].startswith(reason)
    assert "\n" not in found.reasons()["failing"]
    assert found.numbers()[MODEL] == {"count": 64}


def test_a_mistake_in_the_comparison_is_an_error(usual: Subject) -> None:  # noqa: F811
    """Catches a page of nulls where the reconstructions are missing."""
    with pytest.raises(UserError, match="run the stage"):
        analyse(usual, (failing(UserError("run the stage reconstruct")),), lambda step: None)


def test_embedding_is_that_of_this_process() -> None:
    """Catches a seed or a perplexity lost on the way to the other process."""
    expected = TSNE(perplexity=5.0, init="pca", random_state=3).fit_transform(VECTORS)
    np.testing.assert_array_equal(tsne(VECTORS, perplexity=5.0, seed=3), expected)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [(np.ones((60, 5)), "all vectors are equal"), (VECTORS[:, :1], "1 number; 2 are the least")],
    ids=["equal", "one number"],
)
def test_vectors_without_a_plane_are_named(vectors: np.ndarray, reason: str) -> None:
    """Catches signal 11 on equal vectors, and a PCA of more components than there are numbers."""
    with pytest.raises(Unavailable, match=reason):
        tsne(vectors, perplexity=5.0, seed=0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "ended by SIGSEGV"),
        ("raise ValueError('no neighbours')", r"failed \(ValueError: no neighbours\)"),
    ],
)
def test_a_process_that_fails_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    """Catches a crash that is passed on, or taken for points."""
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", code])
    with pytest.raises(Unavailable, match=reason):
        tsne(VECTORS, perplexity=5.0, seed=0)
