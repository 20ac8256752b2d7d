"""Variables of other tools that would change numbers: refused, so that none does it unnoticed.

Not refused are those that only choose the machine's own arithmetic, as another processor would:
threads (OMP_NUM_THREADS, MKL_NUM_THREADS) and instruction sets (ATEN_CPU_CAPABILITY,
ONEDNN_MAX_CPU_ISA, MKL_CBWR). None of MLflow's or DVC's reaches a number.
"""

import os
from collections.abc import Mapping

from scorevae.errors import UserError

OFF = ("", "0", "no", "false")
TRAINING = "training.precision and the rest of params.yaml decide this"
PARALLEL = "trainings are parallel by data alone (docs/development.md)"
# variable -> values that change nothing, in lower case; what decides in its place
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1"), "training.accumulate decides this"),
    "ACCELERATE_MIXED_PRECISION": (OFF, TRAINING),
    "ACCELERATE_DOWNCAST_BF16": (OFF, TRAINING),
    "ACCELERATE_DYNAMO_BACKEND": (OFF, TRAINING),
    "ACCELERATE_USE_FSDP": (OFF, PARALLEL),
    "ACCELERATE_USE_DEEPSPEED": (OFF, PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": (OFF, PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (OFF, PARALLEL),
    "ACCELERATE_USE_SAGEMAKER": (OFF, PARALLEL),
    "NVIDIA_TF32_OVERRIDE": (("", "0"), TRAINING),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (("", "0"), TRAINING),
    "ONEDNN_DEFAULT_FPMATH_MODE": (("", "strict"), TRAINING),
    "DNNL_DEFAULT_FPMATH_MODE": (("", "strict"), TRAINING),
}


def check_surroundings(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse the variables that would make other numbers of the same parameters.

    Raises:
        UserError: one of them is set to something else than off.
    """
    for name, (neutral, instead) in REFUSED.items():
        value = environment.get(name, "")
        if value.lower() not in neutral:
            raise UserError(
                f"{name}={value} is set and would change the numbers; unset it: {instead}"
            )
