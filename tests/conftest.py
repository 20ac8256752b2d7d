"""Shapes checked while the tests run, isolation of every test, and the three processes."""

import functools
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

# Each of pytest's processes has a core to itself; so do those that tests start, for the same bits.
os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `import stages.…`
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read by MLflow when it is imported
os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"  # of the machine, for each stage


TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for mypy


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype, leaving out what it cannot check: protocols, Self and forward references."""

    def checkable(hint: object) -> bool:
        duck = hint is Self or isinstance(hint, str) or getattr(hint, "_is_protocol", False)
        return not duck and all(map(checkable, get_args(hint)))

    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if checkable(hint)}
    check = beartype(function, conf=TOWER)

    @functools.wraps(check)
    def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        Checks.left -= 1
        if Checks.left < 0:
            jaxtyping.config.update("jaxtyping_disable", True)
        return check(*args, **kwargs)

    return counted


class Checks:
    """How many calls of a test are still to be checked, arguments and results counted apart.

    A check takes longer than most of what it checks; a test that integrates over a thousand steps
    makes the same calls again and again.
    """

    EACH = 1000
    left = EACH

    @classmethod
    def begin(cls) -> None:
        """Check the next calls."""
        cls.left = cls.EACH
        jaxtyping.config.update("jaxtyping_disable", False)


# Every other annotation of the package, tensor shapes included, is checked at run time. The hook
# must precede the first import of the package.
install_import_hook("scorevae", "conftest.checked")

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402

from scorevae.config import SDEConfig  # noqa: E402
from scorevae.sde import SDE, build_sde  # noqa: E402

if TYPE_CHECKING:
    from pipeline import Clone

CONSTANTS = dict(
    beta_min=0.1, beta_max=20.0, sigma_min=0.01, sigma_max=50.0, t_min=1e-3, t_max=1.0
)

# Warnings of third-party libraries that cannot be avoided here.
UNAVOIDABLE = (
    "ignore:The ``noload`` loader strategy:DeprecationWarning",  # MLflow's use of SQLAlchemy
    "ignore:This DataLoader will create:UserWarning",  # torch: more workers than cores
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12: torch forks
)


UNPACKS_TARS = hasattr(tarfile, "data_filter")


def pytest_configure(config: pytest.Config) -> None:
    """Let unavoidable warnings pass; every other one is an error. Hang up as in a terminal."""
    for line in UNAVOIDABLE:
        config.addinivalue_line("filterwarnings", line)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's choice would be inherited by all tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process waits long for the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Skip what reads a tar under Python 3.11.0 to 3.11.3, which cannot do so safely."""
    try:
        return (yield)
    except BaseException as error:  # a failure of pytest's is no Exception
        if UNPACKS_TARS or "Python 3.11.4 or newer unpacks it" not in str(error):
            raise
        pytest.skip("this Python's tarfile would write anywhere: no tar is read")


@pytest.fixture(params=["vp", "subvp", "ve"])
def sde(request: pytest.FixtureRequest) -> SDE:
    """Each forward process with the constants of the paper."""
    return build_sde(SDEConfig(kind=request.param, **CONSTANTS))


@pytest.fixture(autouse=True)
def _torch_state() -> Iterator[None]:
    """Restore dtype and gradient mode, and fail a test that left gradients switched."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    Checks.begin()
    yield
    left = torch.is_grad_enabled()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    assert left == grad, "the test changed the global gradient mode"


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Whatever is kept goes to one folder, never to the repository; DVC is not around."""
    patch.setenv("SCOREVAE_STATE", str(folder / "state"))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    patch.setenv("TORCH_HOME", str(folder / "torch"))
    patch.setenv("SCOREVAE_DOWNLOADS", str(folder / "downloads"))
    patch.setenv("SCOREVAE_PROCESSES", "1")  # or stages that run in a test would leave it
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "SCOREVAE_WORKERS", "SCOREVAE_COMPILE"):
        patch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test by itself."""
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def dvc_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """A folder that is the DVC repository: tracking puts its lock and its artifacts there."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(empty_database, tmp_path)
    return tmp_path


@pytest.fixture
def closed_figures() -> Iterator[None]:
    """Close what a test has drawn: pyplot warns where many figures are open."""
    from matplotlib import pyplot

    yield
    pyplot.close("all")


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder of that name, made by the first of xdist's processes that asks, for all of them.

    Nobody may change what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a process that failed half way
                path.mkdir()
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def empty_database(once: Once) -> Path:
    """A database with MLflow's tables, which take seconds to create."""

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()

    return once("empty_database", make) / "mlflow.db"


@pytest.fixture(scope="session")
def finished(once: Once, empty_database: Path) -> Path:
    """A folder in which all seven stages have run, and the table that the last one printed."""
    import pipeline

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            isolate(patch, folder)
            patch.chdir(folder)
            shutil.copy(empty_database, folder)
            (folder / "table.txt").write_text(pipeline.finish().output)

    return once("finished", make)


@pytest.fixture
def workspace(
    finished: Path, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A private copy of the finished folder, as the current directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.copy(empty_database, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_clone(once: Once, finished: Path, empty_database: Path) -> "Clone":
    """A clone of the working tree in which DVC has recorded the finished folder."""
    import pipeline

    def make(folder: Path) -> None:
        clone = pipeline.make_clone(folder, empty_database)
        for name in pipeline.OUTPUTS:
            shutil.copytree(finished / name, folder / name, dirs_exist_ok=True)
        clone.run("dvc", "commit", "--force")
        clone.commit()

    return pipeline.Clone(once("finished_clone", make))


@pytest.fixture
def clone(finished_clone: "Clone", tmp_path: Path) -> "Clone":
    """A copy of it for one test."""
    return finished_clone.copy(tmp_path / "clone")
