#!/usr/bin/env bash
# A GPU that PyTorch cannot use would mean days of training on the CPU, unnoticed.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
exec python - <<'PY'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(f"no CUDA device for PyTorch {torch.__version__} (built for CUDA "
             f"{torch.version.cuda}): compare with nvidia-smi, the driver's version and "
             "CUDA_VISIBLE_DEVICES on this runner")
device = torch.device("cuda")
assert (torch.ones(2, device=device) + 1).sum().item() == 4  # a kernel for this GPU exists
print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, "
      f"CUDA {torch.version.cuda}")
PY
