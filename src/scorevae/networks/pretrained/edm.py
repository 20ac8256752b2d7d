"""Networks of EDM, the code of Karras et al. 2022 (arXiv 2206.00364), out of its pickles.

Such a pickle has the Python source of its classes in it, and EDM's own loader runs that source.
``convert`` runs nothing of a file (:mod:`.edm_pickle`) and makes of it a file of safetensors that
describes itself; ``read`` reads no other.

D(x; σ) = c_skip x + c_out F(c_in x; c_noise), table 1, is the mean of y given x = y + σ ε, where y
are images in [−1, 1].
"""

import json
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scorevae.config import (
    Count,
    Counts,
    EDMPriorConfig,
    ImageConfig,
    NonNegative,
    Section,
    Share,
    parse,
)
from scorevae.errors import UserError, in_a_line
from scorevae.networks.pretrained.adapter import SIGMA_DATA, ForeignNetwork, Prediction
from scorevae.networks.pretrained.edm_pickle import Recorded, unpickled
from scorevae.networks.pretrained.noise import ContinuousNoise, Noise, SigmaNoise
from scorevae.networks.pretrained.read import Read, check_weights, locate
from scorevae.networks.pretrained.song_unet import SongUNetConfig, Taps
from scorevae.runtime.files import replacing, sha256

REMEDY = "give an unconditional network of EDM with a SongUNet"
SIGMAS = 0.002, 80.0  # between which EDM samples; training draws σ around 0.3 and beyond both

# The constants of each preconditioning that its noise depends on.
CONSTANTS = {
    "EDMPrecond": ["sigma_data"],
    "VPPrecond": ["beta_d", "beta_min", "M", "epsilon_t"],
    "VEPrecond": ["sigma_min", "sigma_max"],
}

# What SongUNet takes where its arguments do not say; those of None have to be said.
ARGUMENTS: dict[str, Any] = dict(
    img_resolution=None,
    in_channels=None,
    out_channels=None,
    model_channels=128,
    channel_mult=[1, 2, 2, 2],
    channel_mult_emb=4,
    num_blocks=4,
    attn_resolutions=[16],
    dropout=0.1,
    embedding_type="positional",
    channel_mult_noise=1,
    encoder_type="standard",
    decoder_type="standard",
    resample_filter=[1, 1],
)
WITHOUT_EFFECT = ("label_dim", "augment_dim", "label_dropout")  # where neither label is given


class SongArguments(Section):
    """The arguments of EDM's ``SongUNet``, under its names."""

    img_resolution: Count
    in_channels: Count
    out_channels: Count
    model_channels: Count
    channel_mult: Counts
    channel_mult_emb: Count
    num_blocks: Count
    attn_resolutions: list[Count]
    dropout: Share
    embedding_type: Literal["positional", "fourier"]
    channel_mult_noise: Count
    encoder_type: Literal["standard", "skip", "residual"]
    decoder_type: Literal["standard", "skip"]
    resample_filter: Taps

    def config(self) -> SongUNetConfig:
        """The same in our words."""
        return SongUNetConfig(
            size=self.img_resolution,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            channels=self.model_channels,
            multipliers=self.channel_mult,
            embedding_multiplier=self.channel_mult_emb,
            noise_multiplier=self.channel_mult_noise,
            blocks=self.num_blocks,
            attention=self.attn_resolutions,
            dropout=self.dropout,
            embedding=self.embedding_type,
            log_label=False,
            encoder=self.encoder_type,
            decoder=self.decoder_type,
            taps=self.resample_filter,
            skip_scale=0.5**0.5,
            norm_eps=1e-6,
            groups=32,
            group_channels=4,
            doubled_input=False,
            scale_by_sigma=False,
        )


class EDMHeader(Section):
    """What a converted file says of itself."""

    preconditioning: Literal["EDMPrecond", "VPPrecond", "VEPrecond"]
    constants: dict[str, NonNegative]
    network: SongArguments
    sha256: str  # of the pickle

    def noise(self) -> tuple[Noise, Prediction]:
        """The process that the network knows, and what it predicts (table 1)."""
        constants = self.constants
        match self.preconditioning:
            case "EDMPrecond":
                low, high = SIGMAS
                noise = SigmaNoise(sigma_min=low, sigma_max=high, label="quarter_log")
                return noise, "edm"
            case "VEPrecond":
                low, high = constants["sigma_min"], constants["sigma_max"]
                noise = SigmaNoise(sigma_min=low, sigma_max=high, label="log_half")
                return noise, "negative_noise"  # D = x + σ F
            case "VPPrecond":
                low = constants["beta_min"]
                high, t_min = low + constants["beta_d"], constants["epsilon_t"]
                process = ContinuousNoise(process="vp", low=low, high=high, t_min=t_min)
                return process, "noise"  # D = x − σ F


def read(settings: EDMPriorConfig, image: ImageConfig) -> Read:
    """Read a converted network.

    Raises:
        UserError: the file is missing, not the expected one, truncated, a pickle, or not written
            by ``convert``; the network is for other images.
    """
    path, digest = locate(settings)
    header = _header(path)
    network = header.network
    sees = {"channels": network.in_channels, "size": network.img_resolution}
    for name, found in sees.items():
        if found != (wanted := getattr(image, name)):
            raise UserError(
                f"{path}: its images have {name} {found}, data.image.{name} is {wanted}; give a "
                "network for these images or images for this network"
            )
    noise, prediction = header.noise()
    weights = safetensors.torch.load_file(path)
    _check(path, header, weights)
    foreign = ForeignNetwork(
        network=network.config(),
        noise=noise,
        prediction=prediction,
        data_range="[-1, 1]",
        origin=f"EDM {path.name}",
        sha256=digest,
    )
    return Read(foreign, weights)


def _header(path: Path) -> EDMHeader:
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})["edm"])
    except (SafetensorError, OSError, KeyError, ValueError):
        raise UserError(
            f"{path}: no converted network of EDM, or truncated; convert its pickle (again), as "
            "docs/priors.md says"
        ) from None
    return parse(EDMHeader, tree, str(path))


def _check(path: Path, header: EDMHeader, weights: dict[str, Tensor]) -> None:
    """Raise UserError unless constants and weights are of a network that is read here."""
    fixed = {"sigma_data": SIGMA_DATA, "M": 1000.0}
    for name in CONSTANTS[header.preconditioning]:
        value = header.constants.get(name)
        if value is None or value != fixed.get(name, value):
            wanted = fixed.get(name, "a number")
            raise UserError(f"{path}: {name} is {value}, not {wanted}; {REMEDY} and {wanted}")
    try:
        with torch.device("meta"):
            network = header.network.config().build()
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        why = in_a_line(error, 100)
        raise UserError(f"{path}: its network cannot be built ({why}); {REMEDY}") from None
    check_weights(path, network, weights)


def convert(source: Path, output: Path) -> None:
    """Turn a pickle of EDM into safetensors with a header, without running what is in it.

    Of a snapshot of training, the moving average (``ema``) is taken. Weights of the augmentation
    labels are left out: without such labels they take no part.

    Raises:
        UserError: the pickle is missing, truncated, or asks for what is not allowed; the network
            is conditioned on classes, or not one of SongUNet.
    """
    found = unpickled(source)
    found = found["ema"] if isinstance(found, dict) and "ema" in found else found
    try:
        tree, weights = _described(source, found)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{source}: no network of EDM; {REMEDY}") from None
    header = parse(EDMHeader, tree, str(source))
    _check(source, header, weights)
    metadata = {"edm": header.model_dump_json()}
    with replacing(output) as temporary:
        temporary.write_bytes(safetensors.torch.save(weights, metadata))


def _described(source: Path, network: Any) -> tuple[object, dict[str, Tensor]]:  # noqa: ANN401
    """Header, not yet checked, and weights of a network that a pickle holds."""
    if network.name not in CONSTANTS:
        raise UserError(f"{source}: a network under {network.name}, which is not read; {REMEDY}")
    model: Recorded = network.state["_modules"]["model"]
    if model.name != "SongUNet":
        raise UserError(f"{source}: a {model.name}, which is not read; {REMEDY}")
    given = dict(model.state["_init_kwargs"])
    if classes := given.get("label_dim"):
        raise UserError(f"{source}: conditioned on classes (label_dim {classes}); {REMEDY}")
    further = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    constants = {name: network.state[name] for name in CONSTANTS[network.name]}
    tree = dict(
        preconditioning=network.name,
        constants=constants,
        network=ARGUMENTS | further,
        sha256=sha256(source),
    )
    ignored = ("map_augment.weight", "resample_filter")
    weights = {
        name: value.detach().to(torch.float32).contiguous()
        for name, value in model.tensors()
        if not name.endswith(ignored)
    }
    return json.loads(json.dumps(tree)), weights  # of tuples, lists
