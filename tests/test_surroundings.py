"""Variables of other tools: none changes numbers unnoticed."""

import re
from pathlib import Path

import accelerate
import pytest

from scorevae.errors import UserError
from scorevae.runtime.surroundings import REFUSED, check_surroundings

# What accelerate reads beside those: settings of what is refused, and what reaches no number.
OF_REFUSED = (
    "ACCELERATE_DEEPSPEED_",
    "ACCELERATE_FP8_",
    "ACCELERATE_DYNAMO_",
    "ACCELERATE_CONFIG_DS",
)
HARMLESS = {
    "ACCELERATE_GRADIENT_CLIPPING",  # DeepSpeed's
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_DEBUG_MODE",  # checks shapes
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_TORCH_DEVICE",  # where to run, as another machine
    "ACCELERATE_USE_CPU",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_variable_that_changes_numbers_is_refused(name: str) -> None:
    """Catches other weights of the same parameters, and a refusal of what is off."""
    with pytest.raises(UserError, match=rf"{name}=4 is set .* unset it: "):
        check_surroundings({name: "4"})
    for value in REFUSED[name][0]:
        check_surroundings({name: value.upper()})
    check_surroundings({})


def test_every_variable_of_accelerate_is_known() -> None:
    """Catches a variable of a new version that nobody has looked at."""
    root = Path(accelerate.__file__).parent
    sources = ("accelerator.py", "state.py", "utils/dataclasses.py", "utils/environment.py")
    text = "".join((root / name).read_text(encoding="utf-8") for name in sources)
    found = set(re.findall(r"\"(ACCELERATE_[A-Z_0-9]+)\"", text))
    assert len(found) > 15
    others = {name for name in found - set(REFUSED) if not name.startswith(OF_REFUSED)}
    assert others <= HARMLESS
