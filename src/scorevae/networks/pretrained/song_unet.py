"""DDPM++ and NCSN++, the U-Nets of Song et al. 2020 and Karras et al. 2022."""

from typing import Literal

from torch import nn

from scorevae.config import Section


class SongUNetConfig(Section):
    """Placeholder."""

    kind: Literal["song"] = "song"

    def build(self) -> nn.Module:
        """The network, untrained."""
        raise NotImplementedError
