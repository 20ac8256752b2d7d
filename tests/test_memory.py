"""memory: running out is said in terms of the parameters."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_params, write_params

from scorevae.errors import UserError
from scorevae.runtime.memory import explaining_memory

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


# The address space that the process has after its imports, and 8 GiB more: ample for all that the
# stage does (it imports more, starts threads), and less than the batch below asks in one piece, so
# that nothing else can be what fails.
LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from stages.train_vae_baseline import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30),) * 2)
main()
"""


@pytest.mark.slow
def test_a_stage_without_memory_names_its_keys(tmp_path: Path) -> None:
    """Catches a traceback, and advice that does not say which of four batches to lower."""
    huge = {
        "presets.digits.data.image.size": 128,
        "presets.digits.vae.training.batch": 1024,  # ·256·128·128 float32 are 16 GiB a layer
        "presets.digits.encoder.network.channels": [256],
    }
    write_params(tmp_path / "params.yaml", tiny_params(**huge))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        images = np.zeros((1024, 128, 128, 1), dtype=np.uint8)
        np.save(tmp_path / f"data/{split}_images.npy", images)
    train = "--data data --output vae --curve curve.csv"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ROOT), *train.split()],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message.startswith("Error: out of memory (")
    key = "presets.digits.vae.training"
    assert message.endswith(f"lower {key}.batch (1024), or set {key}.precision to bf16")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vae").exists()
