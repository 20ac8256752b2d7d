"""From the files of others to a prior of ours: read, checked, and ready to be saved as weights."""

from collections.abc import Callable
from typing import Any

from scorevae.config import AnyPretrained, ImageConfig, OwnPriorConfig, SDEConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained import diffusers, edm, guided, score_sde
from scorevae.networks.pretrained.adapter import PretrainedPrior
from scorevae.networks.pretrained.read import KEY, Read, check_weights, locate
from scorevae.networks.prior import Prior, PriorHeader, load_prior
from scorevae.sde import build_sde

READERS: dict[str, Callable[[Any, ImageConfig], Read]] = {
    "diffusers": diffusers.read,
    "guided_diffusion": guided.read,
    "improved_diffusion": guided.read,
    "score_sde": score_sde.read,
    "edm": edm.read,
}


def import_prior(settings: AnyPretrained, image: ImageConfig, sde: SDEConfig) -> Prior:
    """A prior for these images under this process, on the CPU, its weights not frozen.

    Raises:
        UserError: a file is missing, damaged or not what the settings say; its images have another
            shape; or it does not know all noise of the process.
    """
    if isinstance(settings, OwnPriorConfig):
        return _own(settings, image, sde)
    read = READERS[settings.format](settings, image)
    header = PriorHeader(image=image, sde=sde, network=read.settings)
    header.check_covers(sde, f"{KEY}.path: {settings.path}")
    prior = PretrainedPrior(read.settings, build_sde(sde))
    check_weights(settings.path, prior.network, read.weights)
    prior.network.load_state_dict(read.weights)
    return Prior(prior, header)


def _own(settings: OwnPriorConfig, image: ImageConfig, sde: SDEConfig) -> Prior:
    """A prior's file of this project, imported before or trained."""
    path = locate(settings).path
    prior = load_prior(path)
    if prior.header.image != image:
        raise UserError(
            f"{path}: a prior of images ({prior.header.image}), the preset has ({image}); choose "
            "another file, or other images"
        )
    if prior.header.sde != sde and not prior.header.foreign:
        raise UserError(
            f"{path}: a prior of the process ({prior.header.sde}), the parameters have ({sde}); "
            "set sde to the former"
        )
    prior.network.requires_grad_(True)
    return prior.under(sde)
