"""The strict mirror of ``params.yaml``: every key is required, none has a default here.

Nothing in this module changes a result: values live in ``params.yaml``, where DVC tracks them.
"""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from scorevae.errors import UserError, in_a_line
from scorevae.quick import made_quick

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
MAX_FAULTS = 20  # lines of one message
MAX_DEPTH = 32  # of a YAML file; the deepest parameter lies at 7

LARGEST = 2**63 - 1  # with which torch and numpy count
Count = Annotated[int, Field(gt=0, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
FileName = Annotated[str, Field(min_length=1)]  # an empty one would be the current folder
AtLeastTwo = Annotated[int, Field(ge=2)]
Counts = Annotated[list[Count], Field(min_length=1)]
MAX_NAME = 60  # with the longest key behind it, MLflow and file systems still take it


def _plain(name: str) -> str:
    """A name that file systems, shells, DVC's ``${…}`` and MLflow's parameters all take."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or len(name) > MAX_NAME:
        raise ValueError(
            f"got the name {shown(name)}; rename it: at most {MAX_NAME} letters a to z, digits, "
            "_ and -, the first a letter or digit"
        )
    return name


Name = Annotated[str, AfterValidator(_plain)]
TimeDistribution = Literal["uniform", "log_snr"]
VAEError = Literal["squared", "squared_unit", "paper"]
Grid = Literal["uniform", "log_snr", "karras"]
LPIPSNet = Literal["alex", "vgg", "squeeze"]
Variant = Literal["corrector", "diffusion_decoder"]
Conditioning = Literal["concatenate", "scale"]
Precision = Literal["float32", "tf32", "bf16"]


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
    # 1 is left out of headers: weights from before this key was there say nothing of it.
    t_max: Annotated[float, Field(gt=0, le=1, exclude_if=lambda t_max: t_max == 1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} is not below t_max {self.t_max}")
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}")
        return self


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
    grid: Grid
    steps: Count
    corrector_snr: Positive  # predictor_corrector
    noise_scale: NonNegative  # τ
    clip: bool


class ProtocolConfig(SamplingConfig):
    """A named way to reconstruct: which z, and how the image is drawn."""

    z: Literal["mean", "sample"]


class ReconstructConfig(Section):
    """The stage ``reconstruct``."""

    protocol: str
    prior: FileName | None  # weights of another prior to decode with; null: the encoder's
    guidance: NonNegative
    batch: Count
    precision: Precision


class DecodingConfig(Section):
    """``decoding.json`` beside a model's weights: how the run that trained it reconstructed."""

    format: Literal[1]
    beta: NonNegative | None  # null: not known
    guidance: NonNegative
    prior: FileName | None  # as reconstruct.prior
    protocol: ProtocolConfig


class PartConfig(Section):
    """A part of the stage ``evaluate``; ``images: 0`` switches it off."""

    images: CountOrZero


class LikelihoodConfig(PartConfig):
    """The bound on ln p(x), and the prior's likelihood by the ODE."""

    repeats: AtLeastTwo
    draws: Count
    ode_images: CountOrZero


class SamplersConfig(PartConfig):
    """Every sampler at several costs."""

    evaluations: Counts
    grids: Annotated[list[Grid], Field(min_length=1)]


class GuidanceConfig(PartConfig):
    """Several weights of ∇ ln q(z|x_t)."""

    weights: Annotated[list[NonNegative], Field(min_length=1)]


class TradeConfig(PartConfig):
    """Ways to decode the same z, from near and smooth to far and sharp."""

    noise_scales: Annotated[list[NonNegative], Field(min_length=1)]
    guidance: Annotated[list[NonNegative], Field(min_length=1)]
    means: Counts


class ProbesConfig(PartConfig):
    """What simple classifiers read from z."""

    train_images: Count
    neighbours: Count
    times: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]


class InterpolationsConfig(PartConfig):
    """Lines and arcs between as many pairs of images."""

    steps: AtLeastTwo


class EditsConfig(PartConfig):
    """z moved from one class towards another."""

    strengths: Annotated[list[float], Field(min_length=1)]


class DrawsConfig(PartConfig):
    """Several images for one z."""

    count: AtLeastTwo


class QualityConfig(PartConfig):
    """Distances of samples to images."""

    train_images: Count
    steps: Count
    inception: str | None  # torch-fidelity's file; null looks into TORCH_HOME, then fetches it


class EvaluateConfig(Section):
    """The stage ``evaluate``."""

    classifier_images: Count
    active_threshold: Positive
    figure_images: Count
    likelihood: LikelihoodConfig
    samplers: SamplersConfig
    guidance: GuidanceConfig
    trade: TradeConfig
    perception: PartConfig  # spectra, and the features of quality's classifier
    probes: ProbesConfig
    embedding: PartConfig  # t-SNE of z
    interpolations: InterpolationsConfig
    edits: EditsConfig
    draws: DrawsConfig
    shuffled: PartConfig  # reconstruction with the z of another image
    quality: QualityConfig


class TrainingConfig(Section):
    """One run of :func:`scorevae.training.loop.fit`."""

    batch: Count
    accumulate: Count  # parts of a batch that are computed one after the other
    steps: CountOrZero
    learning_rate: Positive
    schedule: Literal["constant", "cosine"]
    warmup: CountOrZero
    clip: Positive
    ema: Share
    precision: Precision
    log_every: Count
    validate_every: Count

    @model_validator(mode="after")
    def _in_equal_parts(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"accumulate: got {self.accumulate}, which does not divide batch ({self.batch}); "
                "choose a divisor of it"
            )
        return self


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
    root: FileName | None  # files that the user has; null fetches the official ones
    image: ImageConfig
    images: Count | None  # most of each split, and of files in a folder; null: all
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split: Literal["auto", "folders", "random"]  # of the source folder
    split_seed: Annotated[int, Field(ge=0, lt=2**32)]  # scikit-learn's range

    @model_validator(mode="after")
    def _grey_or_colour(self) -> Self:
        if (channels := self.image.channels) not in (1, 3):
            raise ValueError(f"image.channels: got {channels}; choose 1 (grey) or 3 (colour)")
        return self


class LPIPSConfig(Section):
    """The trunk of LPIPS."""

    net: LPIPSNet
    trunk: FileName | None  # torchvision's file of it; null looks into TORCH_HOME, then fetches it
    required: bool  # stop in download, rather than report null at the end


class UNetConfig(Section):
    """The prior's DDPM U-Net (diffusers' ``UNet2DModel``)."""

    channels: Counts
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
    channels: Counts
    blocks: Count  # resnet
    groups: Count  # resnet
    attention: list[Count]  # resnet
    patch: Count  # resnet
    linear: bool  # resnet

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.kind == "resnet":
            _check_groups(self.channels, self.groups)
        elif self.channels[0] % 2:  # time is embedded as pairs of sine and cosine
            raise ValueError(f"channels: got {self.channels[0]} first; conv needs an even number")
        return self


def _check_groups(channels: list[int], groups: int) -> None:
    for width in channels:
        if width % groups:
            raise ValueError(f"channels {width} is not a multiple of groups {groups}")


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DataRange = Literal["[-1, 1]", "[0, 1]"]  # of the images that a network was trained on


class PretrainedConfig(Section):
    """A diffusion model that others trained, or we did."""

    path: FileName
    sha256: Digest | None  # of the file of weights; null: not compared, but recorded


class OwnPriorConfig(PretrainedConfig):
    """A prior's weights of this project."""

    format: Literal["own"]


class DiffusersPriorConfig(PretrainedConfig):
    """diffusers' folder of a ``DDPMPipeline``, or its id on the Hugging Face hub."""

    format: Literal["diffusers"]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None  # commit of the hub id


class GuidedUNetConfig(Section):
    """The U-Net of guided-diffusion and improved-diffusion, whose files do not describe it."""

    channels: Count
    multipliers: Counts  # of channels, level by level
    blocks: Count
    attention: list[Count]  # sides of feature maps
    heads: Count | None  # of every attention; null: by head_channels
    head_channels: Count | None
    scale_shift: bool
    resblock_updown: bool
    new_attention_order: bool


class GuidedPriorConfig(PretrainedConfig):
    """A state dict of guided-diffusion or improved-diffusion."""

    format: Literal["guided_diffusion", "improved_diffusion"]
    network: GuidedUNetConfig
    schedule: Literal["linear", "cosine"]
    timesteps: Count
    rescale_timesteps: bool
    learned_variance: bool


class NCSNppConfig(Section):
    """score_sde's ``ncsnpp``, that is DDPM++ and NCSN++; names as in its configurations."""

    nf: Count
    ch_mult: Counts
    num_res_blocks: Count
    attn_resolutions: list[Count]
    resamp_with_conv: bool
    fir: bool
    skip_rescale: bool
    progressive: Literal["none", "output_skip"]
    progressive_input: Literal["none", "input_skip", "residual"]
    progressive_combine: Literal["sum"]
    embedding_type: Literal["positional", "fourier"]
    scale_by_sigma: bool


class ScoreSDEPriorConfig(PretrainedConfig):
    """A checkpoint of score_sde_pytorch."""

    format: Literal["score_sde"]
    network: NCSNppConfig
    process: Literal["vp", "subvp", "ve"]
    low: Positive  # beta_min, sigma_min
    high: Positive  # beta_max, sigma_max
    data_range: DataRange  # [0, 1] where data.centered is False


class EDMPriorConfig(PretrainedConfig):
    """A network of EDM, converted from its pickle."""

    format: Literal["edm"]


AnyPretrained = Annotated[
    OwnPriorConfig
    | DiffusersPriorConfig
    | GuidedPriorConfig
    | ScoreSDEPriorConfig
    | EDMPriorConfig,
    Field(discriminator="format"),
]


class PriorConfig(Section):
    """The unconditional diffusion model."""

    source: Literal["train", "pretrained"]
    pretrained: AnyPretrained | None  # read where source is pretrained
    network: UNetConfig  # of a prior that is trained here
    time: TimeDistribution
    training: TrainingConfig  # with a pretrained one, fine-tuning

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.source == "pretrained" and self.pretrained is None:
            raise ValueError("pretrained: got null; say which, as source is pretrained, or train")
        return self


class VAEConfig(Section):
    """The β-VAE baseline."""

    error: VAEError
    training: TrainingConfig


class WarmStartConfig(Section):
    """Regression of q_t on the VAE's encoder before the objective; ``steps: 0`` skips it."""

    clean_share: Share
    variance_scale: Positive
    training: TrainingConfig


class EncoderConfig(Section):
    """The time-dependent encoder; ``training``, of the objective, may have no steps."""

    network: EncoderNetworkConfig
    warm_start: WarmStartConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.training.steps == 0 and self.warm_start.training.steps == 0:
            raise ValueError(
                "training.steps and warm_start.training.steps are both 0, which leaves the "
                "encoder untrained; give one of them 1 or more"
            )
        return self

    @property
    def last_training(self) -> tuple[str, int]:
        """The phase that ends the encoder's training, and its steps."""
        if self.training.steps == 0:
            return "warm_start", self.warm_start.training.steps
        return "objective", self.training.steps


class CorrectorConfig(Section):
    """The corrector of ScoreVAE+."""

    network: UNetConfig
    training: TrainingConfig


class DiffusionDecoderConfig(Section):
    """The diffusion decoder: the prior's U-Net given z, and the encoder without time."""

    conditioning: Conditioning
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
    corrector: CorrectorConfig
    diffusion_decoder: DiffusionDecoderConfig

    @model_validator(mode="after")
    def _fits_the_image(self) -> Self:
        size, encoder = self.data.image.size, self.encoder.network
        unets = {"prior": self.prior.network, "corrector": self.corrector.network}
        for name, network in unets.items():
            _check_levels(f"{name}.network", network, size)
            _check_heads(f"{name}.network", network, size)
        if encoder.kind == "conv":
            _check_divisible("encoder.network", size, 2 ** len(encoder.channels))
        else:
            _check_levels("encoder.network", encoder, size, encoder.patch)
        return self


def _check_levels(
    key: str, network: UNetConfig | EncoderNetworkConfig, size: int, patch: int = 1
) -> None:
    """Each level but the first halves the sides of the feature maps; attention is at some."""
    levels = len(network.channels)
    _check_divisible(key, size, patch * 2 ** (levels - 1))
    sides = [size // (patch * 2**level) for level in range(levels)]
    for side in network.attention:
        if side not in sides:
            raise ValueError(
                f"{key}.attention: got {side}; the sides of its feature maps are "
                f"{', '.join(map(str, sides))}: choose among them"
            )


def _check_divisible(key: str, size: int, divisor: int) -> None:
    if size % divisor:
        raise ValueError(
            f"{key}.channels: so many levels need an image.size that {shown(divisor)} divides, "
            f"not {size}; give fewer channels (levels), or another size or patch"
        )


def _check_heads(key: str, network: UNetConfig, size: int) -> None:
    """Levels that attend, and the middle where one does, need a head of diffusers' 8 channels."""
    for level, width in enumerate(network.channels):
        middle = level == len(network.channels) - 1 and network.attention
        if width < 8 and (middle or size // 2**level in network.attention):
            raise ValueError(
                f"{key}.channels: got {width} where the network attends; give at least 8, or an "
                "empty attention"
            )


class Config(Section):
    """The whole of ``params.yaml``."""

    preset: str
    quick: bool  # made small by scorevae.quick: not what the file says, but what is run
    beta: NonNegative
    seed: CountOrZero
    variants: list[Variant]
    sde: SDEConfig
    objective: ObjectiveConfig
    reconstruct: ReconstructConfig
    protocols: Annotated[dict[Name, ProtocolConfig], Field(min_length=1)]
    evaluate: EvaluateConfig
    presets: Annotated[dict[Name, PresetConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for variant in self.variants:
            if self.variants.count(variant) > 1:
                raise ValueError(f"variants: got {variant!r} twice; name each once")
        _check_known("preset", self.preset, "presets", self.presets)
        name = self.reconstruct.protocol
        _check_known("reconstruct.protocol", name, "protocols", self.protocols)
        for t in self.evaluate.probes.times:
            if t > self.sde.t_max or 0 < t < self.sde.t_min:
                known = f"sde.t_min ({self.sde.t_min}) to sde.t_max ({self.sde.t_max})"
                raise ValueError(f"evaluate.probes.times: got {t}; choose 0, or {known}")
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
        choices = ", ".join(_part(choice) for choice in sorted(known)[:MAX_FAULTS])
        raise ValueError(f"{key} {shown(name)} is not under {under}; choose one of: {choices}")


def load_config(path: Path) -> Config:
    """Read and validate the whole parameter file.

    Raises:
        UserError: file absent or not YAML; a key missing, unknown, ill-typed or out of range.
            One line for each fault: file, key, value, remedy.
    """
    try:
        return configuration(read_tree(path), str(path))
    except OSError as error:
        reason = f"{error.strerror}; name the parameter file with --params"
        raise UserError(f"{path}: {reason}") from None


def configuration(tree: Any, origin: str) -> Config:  # noqa: ANN401 (whatever a file holds)
    """The values of a parameter file as they are run: made small where ``quick`` is true.

    Raises:
        UserError: as :func:`parse`.
    """
    config = parse(Config, tree, origin)
    return parse(Config, made_quick(tree), origin) if config.quick else config


def parse(section: type[AnySection], tree: object, origin: str) -> AnySection:
    """Validate a tree of plain values against a section.

    Raises:
        UserError: one line for each fault, beginning with ``origin``.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    lines = [_describe(fault) for fault in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        lines.append(f"{len(faults) - MAX_FAULTS} more such lines; correct these first")
    raise UserError("\n".join(f"{origin}: {line}" for line in lines))


def _describe(fault: ErrorDetails) -> str:
    place = fault["loc"]
    if place[-1:] == ("[key]",):  # pydantic's mark of what is wrong with the key itself
        place = place[:-2]
    key = ".".join(map(_part, place)) or "top level"
    match fault["type"]:
        case "extra_forbidden":
            return f"{key}: unexpected key; remove it or correct its spelling"
        case "missing":
            return f"{key}: missing; add it (the shipped params.yaml shows every key)"
        case "value_error":
            return f"{key}: {fault['msg'].removeprefix('Value error, ')}"
    return f"{key}: got {shown(fault['input'])}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _part(key: str | int) -> str:
    """One part of a dotted name: as it is, or quoted where that would mislead."""
    text = str(key)
    plain = text.isprintable() and 0 < len(text) <= 60 and not set(". ") & set(text)
    return text if plain else shown(text)


def resolved(config: Config) -> dict[str, Any]:
    """The whole configuration with the selected preset in place of all presets."""
    tree = config.model_dump(exclude={"presets"})
    return {**tree, "presets": {config.preset: config.selected.model_dump()}}


def leaves(tree: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries under dotted names, all beginning with ``key``."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}" if key else name)
    else:
        yield key, tree


def flatten(tree: dict[str, Any]) -> dict[str, str]:
    """Nested dictionaries to dotted names, values as text."""
    return {name: str(value) for name, value in leaves(tree)}


class _Clipped(reprlib.Repr):
    """``repr`` of at most a line, whatever the file holds: PyYAML's aliases grow exponentially."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 100, 100

    def repr_int(self, x: int, level: int) -> str:
        """Python does not write integers beyond 4300 digits."""
        huge = x.bit_length() > 128
        return f"an integer of {x.bit_length()} bits" if huge else super().repr_int(x, level)


shown = _Clipped().repr  # a value as a message quotes it


def _integer(text: str) -> int | float:
    """An integer; as the float inf, which every key refuses, beyond what Python reads."""
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text) if len(text) < 4300 else float(text)


# The core schema of YAML 1.2.2, §10.3.2, in its order: the form of each scalar, and its reader.
# PyYAML reads YAML 1.1, where 1e-05 is a string, no is false and 010 is eight. DVC speaks 1.2:
# ``dvc exp run -S`` leaves ``beta: 1e-05`` behind, and a string such as ``no`` without quotes.
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], object]]] = {
    f"{_TAG}null": (r"null|Null|NULL|~|", lambda text: None),
    f"{_TAG}bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    f"{_TAG}int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _integer),
    f"{_TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    ),
    # Escapes can write halves of characters, and the zero that ends a file name.
    f"{_TAG}str": (r"[^\0\ud800-\udfff]*", str),
}
_Fault = partial(yaml.MarkedYAMLError, None, None)  # (problem, mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with that schema; every key a string and given once, depth bounded."""

    _depth = 0

    # PyYAML's stubs say less than is passed: index may be a node, index and anchor None.
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        self._depth += 1
        if self._depth > MAX_DEPTH:  # PyYAML recurses
            raise _Fault(f"nested more than {MAX_DEPTH} deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                raise _Fault("a key is no string; put it in quotes", key.start_mark)
            if key.value in seen:  # PyYAML would take the last one
                raise _Fault(f"key {shown(key.value)} is given twice", key.start_mark)
            if key.value == "<<":
                raise _Fault("merge keys (<<) are not read; write all keys", key.start_mark)
            seen.add(key.value)
        return node

    def _scalar(self, node: Any) -> object:  # noqa: ANN401 (a collection may have any tag)
        if node.tag not in _SCALARS:
            raise _Fault(f"the tag {shown(node.tag)} is not read; remove it", node.start_mark)
        (form, read), text = _SCALARS[node.tag], self.construct_scalar(node)
        if not re.fullmatch(form, text):  # an explicit tag, as in !!int x, may promise anything
            raise _Fault(f"{shown(text)} is no {node.tag.removeprefix(_TAG)}", node.start_mark)
        return read(text)

    yaml_implicit_resolvers = {
        None: [(tag, re.compile(rf"(?:{form})\Z")) for tag, (form, _) in _SCALARS.items()]
    }
    yaml_constructors = {
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
        None: _scalar,
    }


def read_tree(path: Path) -> object:
    """A YAML file's values as Python's.

    Raises:
        UserError: not YAML, or not the part of it that is read here; names the line.
        OSError: the file cannot be read.
    """
    try:
        loader = _Loader(text := path.read_text(encoding="utf-8"))
        return loader.get_single_data()
    except UnicodeDecodeError as error:
        line, reason = error.object[: error.start].count(b"\n"), "not UTF-8"
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n")
        reason = f"unprintable character #x{error.character:04x}"
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark or loader).line
        reason = str(error.problem or error.context)
    except (ValueError, OverflowError) as error:  # an escape or a version that is no number
        line, reason = loader.line, str(error)
    reason = in_a_line(reason)
    raise UserError(f"{path}: not valid YAML: line {line + 1}: {reason}; correct it there")
