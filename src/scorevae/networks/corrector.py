"""ScoreVAE+: a network that corrects the score of a frozen prior and encoder, given z."""

from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from scorevae.config import EncoderNetworkConfig, ImageConfig, SDEConfig, UNetConfig
from scorevae.errors import UserError
from scorevae.networks.conditional import ConcatenatingUNet
from scorevae.networks.time import NoiseLevel, signal_share, unit_scale
from scorevae.networks.weights import Header, load_weights, read_header
from scorevae.runtime.files import sha256
from scorevae.sde import SDE, build_sde, over
from scorevae.shapes import Images, Latents, Times


class CorrectorUNet(nn.Module):
    """What is added to the noise prediction ε̂ of ScoreVAE: the correction is c = −net/σ_t.

    A :class:`ConcatenatingUNet` whose last convolution is zero at the start, where it changes
    nothing. With ``output: velocity`` its output corrects v, and ε̂ by α v (at unit scale): its
    errors in x̂_0 are then multiplied by σ, not by σ/α.
    """

    def __init__(
        self,
        image: ImageConfig,
        settings: UNetConfig,
        encoder: EncoderNetworkConfig,
        latent: int,
        sde: SDE,
    ) -> None:
        super().__init__()
        self.sde, self.noise_level = sde, NoiseLevel(sde)
        self.output = settings.output
        self.conditioned = ConcatenatingUNet(image, settings, encoder, latent)
        for weight in self.conditioned.last_layer.parameters():
            nn.init.zeros_(weight)

    def forward(self, x_t: Images, z: Latents, t: Times) -> Images:
        """The correction of ε̂(x_t, z, t); t has shape () or (batch,)."""
        scaled = unit_scale(self.sde, x_t, t)
        output = self.conditioned(scaled, z, self.noise_level(t))
        return output if self.output == "noise" else over(signal_share(self.sde, t), x_t) * output


class CorrectorHeader(Header):
    """What a corrector's weights are, and of which files the pair is that it corrects."""

    kind: Literal["corrector"] = "corrector"
    image: ImageConfig
    sde: SDEConfig
    latent: int
    encoder: EncoderNetworkConfig
    network: UNetConfig
    prior_sha256: str
    encoder_sha256: str

    def build(self) -> CorrectorUNet:
        """The network, untrained."""
        sde = build_sde(self.sde)
        return CorrectorUNet(self.image, self.network, self.encoder, self.latent, sde)


class TrainedCorrector(NamedTuple):
    """A loaded corrector."""

    network: CorrectorUNet
    header: CorrectorHeader


def load_corrector(path: Path, prior: Path, encoder: Path) -> TrainedCorrector:
    """Rebuild a frozen corrector of these prior and encoder on the CPU.

    Raises:
        UserError: as ``read_header`` and ``load_weights``; it corrects another prior or encoder.
    """
    header = read_header(path, CorrectorHeader)
    made_for = {"prior": (prior, header.prior_sha256), "encoder": (encoder, header.encoder_sha256)}
    for role, (file, wanted) in made_for.items():
        if (found := sha256(file)) != wanted:
            raise UserError(
                f"{path}: a corrector of another {role} (SHA-256 {wanted[:12]}…, {file} has "
                f"{found[:12]}…); train it again for this one, or restore that one"
            )
    return TrainedCorrector(load_weights(path, header.build()), header)
