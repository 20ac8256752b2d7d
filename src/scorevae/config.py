"""The strict mirror of ``params.yaml``: every key is required, none has a default here.

Nothing in this module changes a result: values live in ``params.yaml``, where DVC tracks them.
"""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scorevae.errors import UserError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
Widths = Annotated[list[Count], Field(min_length=1)]


class Section(BaseModel):
    """Frozen and strict: unknown keys, wrong types, inf and NaN are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class SDEConfig(Section):
    """The forward process; each kind reads its own constants (see :mod:`scorevae.sde`)."""

    kind: Literal["vp", "subvp", "ve"]
    beta_min: Positive  # vp, subvp
    beta_max: Positive  # vp, subvp
    sigma_min: Positive  # ve
    sigma_max: Positive  # ve
    t_min: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}")
        return self


TimeDistribution = Literal["uniform", "log_snr"]


class ObjectiveConfig(Section):
    """The encoder's objective, arXiv 2304.12141 §3.5."""

    weighting: Literal["likelihood", "simple"]
    time: TimeDistribution
    log_determinant: Literal["full", "dropped"]


class SamplingConfig(Section):
    """How the reverse process is integrated (see :mod:`scorevae.sampling`)."""

    sampler: Literal[
        "euler_maruyama",
        "ddim",
        "heun",
        "dpm_solver_pp",
        "sde_dpm_solver_pp",
        "predictor_corrector",
    ]
    grid: Literal["uniform", "log_snr", "karras"]
    steps: Count
    corrector_snr: Positive  # predictor_corrector
    clip: bool


class ProtocolConfig(SamplingConfig):
    """A named way to reconstruct: which z, and how the image is drawn."""

    z: Literal["mean", "sample"]


class ReconstructConfig(Section):
    """The stage ``reconstruct``."""

    protocol: str
    guidance: NonNegative
    batch: Count


class EvaluateConfig(Section):
    """The stage ``evaluate``."""

    classifier_images: Count
    active_threshold: Positive
    figure_images: Count
    interpolation_steps: Annotated[int, Field(ge=2)]


class TrainingConfig(Section):
    """One run of :func:`scorevae.training.fit`."""

    batch: Count
    steps: CountOrZero
    learning_rate: Positive
    schedule: Literal["constant", "cosine"]
    warmup: CountOrZero
    clip: Positive
    ema: Share
    precision: Literal["no", "bf16"]
    log_every: Count
    validate_every: Count


class ImageConfig(Section):
    """Shape of one image."""

    channels: Count
    size: Count

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width); images are square."""
        return self.channels, self.size, self.size

    @property
    def pixels(self) -> int:
        """Numbers in one image."""
        return self.channels * self.size**2


class DataConfig(Section):
    """Where images come from and how they are split."""

    source: Literal["digits", "mnist", "cifar10", "celeba64", "folder"]
    root: str | None  # files that the user has; null fetches the official ones
    image: ImageConfig
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: CountOrZero


LPIPSNet = Literal["alex", "vgg", "squeeze"]


class LPIPSConfig(Section):
    """The trunk of LPIPS."""

    net: LPIPSNet
    trunk: str | None  # torchvision's file of it; null looks into TORCH_HOME, then fetches it
    required: bool  # stop in download, rather than report null at the end


class UNetConfig(Section):
    """The prior's DDPM U-Net (diffusers' ``UNet2DModel``)."""

    channels: Widths
    blocks: Count
    attention: list[Count]
    groups: Count
    dropout: Share
    output: Literal["noise", "velocity"]

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        _check_groups(self.channels, self.groups)
        return self


class EncoderNetworkConfig(Section):
    """The encoder's trunk; the VAE's encoder is the same without time, its decoder the mirror."""

    kind: Literal["conv", "resnet"]
    channels: Widths
    blocks: Count  # resnet
    groups: Count  # resnet
    attention: list[Count]  # resnet
    patch: Count  # resnet
    linear: bool  # resnet

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.kind == "resnet":
            _check_groups(self.channels, self.groups)
        return self


def _check_groups(channels: list[int], groups: int) -> None:
    for width in channels:
        if width % groups:
            raise ValueError(f"channels {width} is not a multiple of groups {groups}")


class PriorConfig(Section):
    """The unconditional diffusion model."""

    network: UNetConfig
    time: TimeDistribution
    training: TrainingConfig


class VAEConfig(Section):
    """The β-VAE baseline."""

    error: Literal["squared", "norm"]
    training: TrainingConfig


class WarmStartConfig(Section):
    """Regression of q_t on the VAE's encoder before the objective; ``steps: 0`` skips it."""

    clean_share: Share
    variance_scale: Positive
    training: TrainingConfig


class EncoderConfig(Section):
    """The time-dependent encoder."""

    network: EncoderNetworkConfig
    warm_start: WarmStartConfig
    training: TrainingConfig


class PresetConfig(Section):
    """Everything that belongs to one data set."""

    data: DataConfig
    flip: bool
    test_images: Count | None  # null: all
    lpips: LPIPSConfig
    latent: Count
    prior: PriorConfig
    vae: VAEConfig
    encoder: EncoderConfig


class Config(Section):
    """The whole of ``params.yaml``."""

    preset: str
    beta: NonNegative
    seed: CountOrZero
    sde: SDEConfig
    objective: ObjectiveConfig
    reconstruct: ReconstructConfig
    protocols: dict[str, ProtocolConfig]
    evaluate: EvaluateConfig
    presets: dict[str, PresetConfig]

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        _check_known("preset", self.preset, "presets", self.presets)
        name = self.reconstruct.protocol
        _check_known("reconstruct.protocol", name, "protocols", self.protocols)
        return self

    @property
    def selected(self) -> PresetConfig:
        """The preset that ``preset`` names."""
        return self.presets[self.preset]

    @property
    def sampling(self) -> ProtocolConfig:
        """The protocol that ``reconstruct.protocol`` names."""
        return self.protocols[self.reconstruct.protocol]


def _check_known(key: str, name: str, under: str, known: Mapping[str, Section]) -> None:
    if name not in known:
        choices = ", ".join(sorted(known))
        raise ValueError(f"{key} {name!r} is not under {under}; choose one of: {choices}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading numbers and booleans as YAML 1.2 does; no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where 1e-05 is a string and no is false. DVC follows YAML 1.2, and
# `dvc exp run -S` writes the file anew: beta: 1e-05, and precision: no without its quotes.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: Path) -> Config:
    """Read and validate the whole parameter file.

    Raises:
        UserError: file absent or not YAML; a key missing, unknown, ill-typed or out of range.
            One line for each fault: file, key, value, remedy.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; name the parameter file with --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}; correct it there") from None
    return parse(Config, tree, str(path))


def parse(section: type[AnySection], tree: object, origin: str) -> AnySection:
    """Validate a tree of plain values against a section.

    Raises:
        UserError: one line for each fault, beginning with ``origin``.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise UserError("\n".join(f"{origin}: {_describe(dict(f))}" for f in faults)) from None


def _describe(fault: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"]) or "top level"
    match fault["type"]:
        case "extra_forbidden":
            return f"{key}: unexpected key; remove it or correct its spelling"
        case "missing":
            return f"{key}: missing; add it (the shipped params.yaml shows every key)"
        case "value_error":
            return f"{key}: {fault['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{key}: got {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]}"
