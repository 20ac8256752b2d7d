"""memory: running out is said in terms of the parameters."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_params, write_params

from scorevae.errors import UserError
from scorevae.memory import explaining_memory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_every_kind_names_the_remedy(error: Exception) -> None:
    """Catches an allocator whose exception is not recognised."""
    with pytest.raises(UserError, match=r"out of memory \(.+\); lower the batch"):  # noqa: SIM117
        with explaining_memory("lower the batch"):
            raise error


def test_other_errors_pass() -> None:
    """Catches a fault of another kind that is called a lack of memory."""
    with pytest.raises(RuntimeError, match="shape"), explaining_memory("lower the batch"):
        raise RuntimeError("shape mismatch")


# The address space that the process has after its imports, and so much more. The limit ends with
# the stage: threads of native libraries that end without memory may crash the interpreter's exit.
LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from stages.train_vae_baseline import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), unlimited[1]))
try:
    main()
finally:
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
"""


@pytest.mark.slow
def test_a_stage_without_memory_names_its_keys(tmp_path: Path) -> None:
    """Catches a traceback, and advice that does not say which of four batches to lower."""
    huge = {
        "presets.digits.vae.training.batch": 1400,  # 1400·256·64 float32 are 92 MB a layer
        "presets.digits.encoder.network.channels": [256],
    }
    write_params(tmp_path / "params.yaml", tiny_params(**huge))
    download = f"{ROOT}/stages/download.py --output data --lpips lpips"
    subprocess.run([sys.executable, *download.split()], cwd=tmp_path, check=True)
    train = "--data data --output vae --curve curve.csv"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ROOT), *train.split()],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message.startswith("Error: out of memory (")
    key = "presets.digits.vae.training"
    assert message.endswith(f"lower {key}.batch (1400), or set {key}.precision to bf16")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vae").exists()
