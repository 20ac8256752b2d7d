"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): its trunk as a checked file, and the distance.

The package ``lpips`` brings the learned linear heads; the trunk is torchvision's ImageNet
classifier, of which the convolutions are kept as safetensors.
"""

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorevae.config import LPIPSConfig, LPIPSNet
from scorevae.errors import Unavailable, UserError
from scorevae.runtime.files import replacing
from scorevae.runtime.published import WeightsFile, check_digest, locate, weights_file
from scorevae.shapes import Images

SMALLEST = 32  # pixels; the trunks' strides and poolings exhaust smaller images
STATUS = "lpips.json"
PAPER_NET: LPIPSNet = "vgg"


def trunk_file(net: LPIPSNet) -> WeightsFile:
    """The file that torchvision names for a trunk."""
    from torchvision import models  # seconds, which small images and a trunk at hand do without

    weights = {
        "alex": models.AlexNet_Weights,
        "vgg": models.VGG16_Weights,
        "squeeze": models.SqueezeNet1_1_Weights,
    }
    return weights_file(weights[net].IMAGENET1K_V1.url)


def prepare_trunks(settings: LPIPSConfig, size: int, folder: Path, *, key: str = "lpips") -> str:
    """Write the trunks that evaluation needs, or why they are not there, as one folder.

    The preset's net, and the paper's VGG where it can be had. Returns the status in words;
    ``key`` is where params.yaml has the settings, for messages.

    Raises:
        UserError: the preset requires LPIPS and its trunk cannot be had, or a file that the user
            supplies is not the trunk.
    """
    status: dict[str, str] = {}
    with replacing(folder) as temporary:
        temporary.mkdir()
        for net in dict.fromkeys((settings.net, PAPER_NET)):
            own = settings.trunk if net == settings.net else None
            try:
                if size < SMALLEST:
                    why = f"under the {SMALLEST} that its trunk needs"
                    raise Unavailable(f"images of {size} pixels are {why}")
                file = trunk_file(net)
                source = locate(file, own, f"{key}.trunk", f"the {net} trunk")
                digest = _store(source, file, net, temporary / f"{net}.safetensors")
                status[net] = f"sha256 {digest}"
            except Unavailable as reason:
                if settings.required and net == settings.net:
                    raise UserError(
                        f"{reason}. This preset requires LPIPS: set {key}.required to false to go "
                        "on without"
                    ) from None
                status[net] = f"unavailable: {reason}"
        (temporary / STATUS).write_text(json.dumps(status, indent=2) + "\n")
    return "; ".join(f"lpips {net} {text}" for net, text in status.items())


def _store(source: Path, file: WeightsFile, net: LPIPSNet, target: Path) -> str:
    """Check a trunk's file, keep its convolutions as safetensors, return its SHA-256."""
    digest = check_digest(source, file, file.name)
    weights = torch.load(source, map_location="cpu", weights_only=True)
    features = {k: v.contiguous() for k, v in weights.items() if k.startswith("features.")}
    save_file(features, target, metadata={"net": net, "sha256": digest})
    return digest


def load_lpips(folder: Path, net: LPIPSNet) -> nn.Module:
    """The pretrained network out of a folder of :func:`prepare_trunks`; never random weights.

    Raises:
        Unavailable: the folder says why the trunk is not there.
        UserError: the folder is not what the stage download wrote.
    """
    try:
        status: dict[str, str] = json.loads((folder / STATUS).read_text())
        why = status.get(net, "unavailable: not asked for")
        if why.startswith("unavailable"):
            raise Unavailable(f"lpips {net} {why}")
        trunk = load_file(folder / f"{net}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: no LPIPS trunk ({error}); run the stage download again"
        ) from None
    return build(net, trunk)


def build(net: LPIPSNet, trunk: dict[str, Tensor]) -> nn.Module:
    """The LPIPS network with the given ``features.*`` weights as its trunk."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's notes on arguments that lpips chooses
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # lpips cuts torchvision's `features` into slices and keeps the layers' numbers.
    renamed = {key: trunk["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
    network.net.load_state_dict(renamed)
    return network.eval().requires_grad_(False)


def distance(
    network: nn.Module, originals: Images, reconstructions: Images, *, unit_range: bool = False
) -> float:
    """Mean LPIPS of images in [0, 1], unclamped, grey ones repeated as RGB.

    The network expects [−1, 1]. ``unit_range=True`` feeds it [0, 1] as they are, as the published
    evaluation did: only for numbers to lay beside the paper's tables.
    """
    total, device = 0.0, next((weight.device for weight in network.parameters()), "cpu")
    for chunks in zip(originals.split(100), reconstructions.split(100), strict=True):
        scaled = [x if unit_range else 2 * x - 1 for x in chunks]
        pair = [x.to(device).expand(-1, 3, -1, -1) for x in scaled]
        with torch.no_grad():
            total += network(*pair).sum().item()
    return total / len(originals)
