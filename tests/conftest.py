"""Shapes checked while the tests run, isolation of every test, and the three processes."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `import stages.…`
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read by MLflow when it is imported


TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for mypy


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype, leaving out what it cannot check: protocols, Self and forward references."""

    def checkable(hint: object) -> bool:
        duck = hint is Self or isinstance(hint, str) or getattr(hint, "_is_protocol", False)
        return not duck and all(map(checkable, get_args(hint)))

    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if checkable(hint)}
    return beartype(function, conf=TOWER)


# Every other annotation of the package, tensor shapes included, is checked at run time. The hook
# must precede the first import of the package.
install_import_hook("scorevae", "conftest.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

from scorevae.config import SDEConfig  # noqa: E402
from scorevae.sde import SDE, build_sde  # noqa: E402

CONSTANTS = {
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "t_min": 1e-3,
}

# Warnings of third-party libraries that cannot be avoided here.
UNAVOIDABLE = (
    "ignore:The ``noload`` loader strategy:DeprecationWarning",  # MLflow's use of SQLAlchemy
    "ignore:This DataLoader will create:UserWarning",  # torch: more workers than cores
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12: torch forks
)


def pytest_configure(config: pytest.Config) -> None:
    """Let unavoidable warnings pass; every other one is an error."""
    for line in UNAVOIDABLE:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(params=["vp", "subvp", "ve"])
def sde(request: pytest.FixtureRequest) -> SDE:
    """Each forward process with the constants of the paper."""
    return build_sde(SDEConfig(kind=request.param, **CONSTANTS))


@pytest.fixture(autouse=True)
def _torch_state() -> Iterator[None]:
    """Restore dtype and gradient mode, and fail a test that left gradients switched."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    left = torch.is_grad_enabled()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    assert left == grad, "the test changed the global gradient mode"


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept goes to tmp_path, never to the repository; DVC is not around."""
    monkeypatch.setenv("SCOREVAE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SCOREVAE_DOWNLOADS", str(tmp_path / "downloads"))
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "SCOREVAE_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dvc_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the DVC repository: tracking puts its lock and its artifacts there."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to create."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
