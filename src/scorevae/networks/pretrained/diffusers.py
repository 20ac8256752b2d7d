"""diffusers' pipelines: a folder of them, or an id on the Hugging Face hub."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorevae.config import DataRange, DiffusersPriorConfig, ImageConfig
from scorevae.errors import UserError, in_a_line
from scorevae.networks.pretrained.adapter import DiffusersUNet, ForeignNetwork, Prediction
from scorevae.networks.pretrained.noise import ContinuousNoise, IndexedNoise, Noise
from scorevae.networks.pretrained.read import KEY, Read, check_channels, checked
from scorevae.runtime.files import own_path
from scorevae.runtime.published import downloads_folder

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
UNETS = ("UNet2DModel", "UNetModel")  # the latter is the former's old name
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "sample": "sample",
    "v_prediction": "velocity",
}
# Of a scheduler, what says which noise its indices mean; and how that was once called.
BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
OLD_NAMES = {"timesteps": "num_train_timesteps"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read(settings: DiffusersPriorConfig, image: ImageConfig) -> Read:
    """The U-Net of a pipeline, built from its own config.json, and its scheduler's noise.

    Both layouts are read: ``unet/`` and ``scheduler/``, or all files side by side.

    Raises:
        UserError: files are missing or damaged, the network is another's than an unconditional
            U-Net on pixels, or its images have another shape.
    """
    folder, origin = _folder(settings)
    unet, scheduler = _parts(folder)
    config, noise = _json(unet / "config.json"), _json(scheduler / "scheduler_config.json")
    _check_class(unet / "config.json", config)
    arguments = _arguments(unet / "config.json", config)
    _check_shape(unet / "config.json", arguments, noise, image)
    weights = next((unet / name for name in WEIGHTS if (unet / name).is_file()), None)
    if weights is None:
        raise UserError(f"{unet}: no {' or '.join(WEIGHTS)} in it; bring the whole folder")
    digest = checked(weights, settings.sha256)
    known, prediction, data_range = _noise(scheduler / "scheduler_config.json", noise)
    network = ForeignNetwork(
        network=DiffusersUNet(config=arguments, heads=None),
        noise=known,
        prediction=prediction,
        data_range=data_range,
        origin=origin,
        sha256=digest,
    )
    return Read(network, _weights(weights))


def _folder(settings: DiffusersPriorConfig) -> tuple[Path, str]:
    """The folder, fetched where ``path`` is a hub id; and how the report calls it."""
    try:
        folder = own_path(settings.path, f"{KEY}.path")
    except UserError:
        if not HUB_ID.fullmatch(settings.path):
            raise
    else:
        if not folder.is_dir():
            raise UserError(f"{KEY}.path: {folder} is no folder; name that of the whole model")
        return folder, f"diffusers folder {folder.name}"
    if settings.revision is None:
        raise UserError(
            f"{KEY}.revision: null, but {settings.path} on the hub may change; give the commit "
            "(40 digits, on the model's page under Files and versions)"
        )
    return _fetched(settings), f"{settings.path}@{settings.revision[:12]}"


def _fetched(settings: DiffusersPriorConfig) -> Path:
    """Its files from the hub, the weights compared with the checksum that the commit states."""
    from huggingface_hub import HfApi, RepoFile, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    patterns = ["*.json", "*/*.json", *(p + name for p in ("", "unet/") for name in WEIGHTS)]
    cache = downloads_folder() / "hub"
    try:
        folder = Path(
            snapshot_download(
                settings.path, revision=settings.revision, allow_patterns=patterns, cache_dir=cache
            )
        )
        names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.name in WEIGHTS]
        stated = HfApi().get_paths_info(settings.path, names, revision=settings.revision)
    except RevisionNotFoundError:
        raise UserError(
            f"{KEY}.revision: {settings.path} has no commit {settings.revision} (any more); give "
            "the one that you mean, or a folder that you have in path"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:  # no network is an OSError
        reason = in_a_line(error)
        raise UserError(
            f"{KEY}.path: {settings.path} cannot be fetched ({reason}); where there is a network, "
            f"run: hf download {settings.path} --revision {settings.revision} --local-dir FOLDER, "
            "bring the folder here and name it in path"
        ) from None
    for file in stated:
        if isinstance(file, RepoFile) and file.lfs is not None:
            checked(folder / file.path, file.lfs.sha256)
    return folder


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders of network and scheduler."""
    index = folder / "model_index.json"
    if index.is_file():
        pipeline = _json(index)
        for latent in ("vqvae", "vae", "text_encoder", "bert"):
            if latent in pipeline:
                raise UserError(
                    f"{index}: a {pipeline.get('_class_name')} with a {latent}, whose network "
                    "does not see pixels alone; choose an unconditional model of pixels"
                )
    if (folder / "unet").is_dir():
        return folder / "unet", folder / "scheduler"
    return folder, folder


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; bring the whole folder of the model") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not JSON ({error}); bring the file again") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: no JSON object; bring the file again")
    return tree


def _check_class(path: Path, config: dict[str, Any]) -> None:
    name = config.get("_class_name", "UNet2DModel")
    if name not in UNETS:
        raise UserError(
            f"{path}: the network is a {name}; an unconditional UNet2DModel is wanted (one that "
            "text or a latent code conditions is no prior of images)"
        )
    for key in ("num_class_embeds", "class_embed_type"):
        if config.get(key) is not None:
            raise UserError(
                f"{path}: {key} is {config[key]}: its classes condition it; choose an "
                "unconditional model"
            )


def _arguments(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the U-Net is built from, its own defaults included."""
    from diffusers import UNet2DModel

    known = inspect.signature(UNet2DModel.__init__).parameters
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    if unknown := [name for name in given if name not in known]:
        raise UserError(
            f"{path}: {', '.join(unknown)}: no settings of diffusers' UNet2DModel as it is "
            "installed; save the model again with it"
        )
    defaults = {k: p.default for k, p in known.items() if k != "self"}
    return {**defaults, **given}


def _check_shape(
    path: Path, config: dict[str, Any], noise: dict[str, Any], image: ImageConfig
) -> None:
    learned = str(noise.get("variance_type", "")).startswith("learned")
    check_channels(path, (config["in_channels"], config["out_channels"]), image, twice=learned)
    if (size := config["sample_size"]) not in (None, image.size, [image.size] * 2):
        raise UserError(
            f"{path}: sample_size is {size}, data.image.size {image.size}; choose a network of "
            "that size, or another size of images"
        )


def _noise(path: Path, config: dict[str, Any]) -> tuple[Noise, Prediction, DataRange]:
    """The scheduler's noise, what the network predicts, and the range of its images."""
    name = config.get("_class_name", "DDPMScheduler")
    if name == "ScoreSdeVeScheduler":
        low, high = config["sigma_min"], config["sigma_max"]
        ve = ContinuousNoise(process="ve", low=low, high=high, t_min=1e-5)
        return ve, "score", "[0, 1]"
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UserError(f"{path}: prediction_type {kind!r}; one of {', '.join(PREDICTIONS)}")
    return indexed(log_snr_of(_alphas(path, config)), 1.0), PREDICTIONS[kind], "[-1, 1]"


def _alphas(path: Path, config: dict[str, Any]) -> Tensor:
    """ᾱ of every index, by diffusers' own scheduler."""
    from diffusers import DDPMScheduler

    named = {OLD_NAMES.get(name, name): value for name, value in config.items()}
    betas = {name: named[name] for name in BETAS if named.get(name) is not None}
    if not betas:
        raise UserError(
            f"{path}: a {config.get('_class_name')} without betas; a scheduler of DDPM's kind, "
            "or ScoreSdeVeScheduler, says what noise the network knows"
        )
    try:
        return DDPMScheduler(**betas).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; give a beta_schedule of DDPMScheduler") from None


def log_snr_of(alphas: Tensor) -> Tensor:
    """λ = ln(ᾱ/(1 − ᾱ)) of each index, float64; those without any signal are left away.

    With zero terminal SNR (arXiv 2305.08891) the last index has λ = −∞: no finite λ lies between
    it and the one before.
    """
    alphas = alphas.to(torch.float64)
    log_snr = torch.log(alphas) - torch.log1p(-alphas)
    return log_snr[torch.isfinite(log_snr)]


def indexed(log_snr: Tensor, label_scale: float) -> IndexedNoise:
    """A grid of indices with these λ.

    Raises:
        UserError: they do not fall from index to index.
    """
    if not torch.all(log_snr.diff() < 0):
        raise UserError("the signal-to-noise ratio does not fall from index to index")
    return IndexedNoise(log_snr=log_snr.tolist(), label_scale=label_scale)


def _weights(weights: Path) -> dict[str, Tensor]:
    """The U-Net's weights under today's names: diffusers renames those of old attention."""
    from diffusers import UNet2DModel

    try:
        unet, found = UNet2DModel.from_pretrained(
            weights.parent,
            use_safetensors=weights.suffix == ".safetensors",
            output_loading_info=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = in_a_line(error)
        raise UserError(
            f"{weights}: its weights cannot be read ({reason}); bring them again"
        ) from None
    if strange := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise UserError(
            f"{weights}: weights and config.json do not fit ({len(strange)} names, the first "
            f"{strange[0]}); bring both again"
        )
    return {f"unet.{name}": value for name, value in unet.state_dict().items()}
