"""What an analysis is: a file in :mod:`scorevae.evaluation.parts` that declares itself once.

A :class:`Part` names its numbers, tables and figures, says what the page says about them, and
computes them from a :class:`Subject`. The numbers of ``metrics.json``, the CSV tables, the figures
and the page are made from these declarations alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.autoencoders.system import System
from scorevae.autoencoders.table import MODEL, SYSTEMS, systems_of
from scorevae.config import Config, Section
from scorevae.data.arrays import Split, to_tensor, to_unit_range
from scorevae.errors import Unavailable
from scorevae.evaluation.features import FeatureClassifier, train_feature_classifier
from scorevae.evaluation.figures import Figure
from scorevae.evaluation.probe import Labelled, Probe, labelled, linear_probe
from scorevae.evaluation.report.page import Card, Table
from scorevae.evaluation.report.tables import Metric, Row, Rows
from scorevae.randomness import derive_seed
from scorevae.reconstructions import Reconstructions, load
from scorevae.runtime.team import ALONE, Team
from scorevae.shapes import AnyImages, Images, Latents

# Training images for each one that a classifier then judges. With 10 to judge, 5,000 to learn from
# would be minutes for a number that is right to a tenth.
PER_JUDGED = 25
# Evaluated images for each one that is decoded tens of times: all parts together then draw a few
# times what reconstruct did, however few images there are.
PER_STUDIED = 8
FEWEST_STUDIED = 2  # of which a difference between settings can be told from noise


def looked_at(limit: int, evaluated: int, least: int = 1) -> int:
    """Images that are decoded tens of times: at most so many, fewer where few are evaluated."""
    return min(limit, max(least, evaluated // PER_STUDIED))


def studied(limit: int, evaluated: int) -> int:
    """Those of a study of settings; 0 where it would be of one image."""
    return min(limit, evaluated // PER_STUDIED) if evaluated >= PER_STUDIED * FEWEST_STUDIED else 0


Numbers = dict[str, dict[str, float | int | None]]  # by system, or what stands beside them


@dataclass(frozen=True)
class Subject:
    """What is analysed."""

    config: Config
    models: Path  # folder of the weights and of LPIPS' trunks
    curves: Path  # folder of the training curves
    train: Split
    test: Split  # the evaluated images
    reconstructions: Path  # of the stage reconstruct
    names: Mapping[int, str] = field(default_factory=dict)  # of the classes
    team: Team = ALONE  # whoever computes; each of its processes has a subject of its own

    @cached_property
    def systems(self) -> dict[str, System]:
        """Every system of the run by its name; the team divides the batches that they draw."""
        rows = systems_of(self.config).items()
        found = {name: row.load(self.models, self.config) for name, row in rows}
        share = self.team.map
        return {
            name: system.with_share(share) if isinstance(system, DiffusionSystem) else system
            for name, system in found.items()
        }

    @property
    def drawing(self) -> dict[str, DiffusionSystem]:
        """Those that draw from p(x|z); the model is the first."""
        return {n: s for n, s in self.systems.items() if isinstance(s, DiffusionSystem)}

    @property
    def model(self) -> ScoreVAE:
        """The system that the others are compared with."""
        model = self.systems[MODEL]
        assert isinstance(model, ScoreVAE)
        return model

    @cached_property
    def originals(self) -> Images:
        """The evaluated images in [0, 1]."""
        return to_unit_range(to_tensor(self.test.images))

    @cached_property
    def reconstructed(self) -> dict[str, Reconstructions]:
        """What every system made of the evaluated images."""
        names = systems_of(self.config)
        return {name: load(self.reconstructions, name, self.originals) for name in names}

    @property
    def z(self) -> Latents:
        """The model's z of the evaluated images."""
        return self.reconstructed[MODEL].posterior.mean

    @cached_property
    def probed(self) -> Split:
        """The training images that probes learn from."""
        rows = self.training_rows(self.worth(self.config.evaluate.probes.train_images))
        labels = self.train.labels
        return Split(self.train.images[rows], None if labels is None else labels[rows])

    @cached_property
    def z_probed(self) -> Labelled:
        """The model's z of them, with their labels."""
        images = to_unit_range(to_tensor(self.probed.images))
        return labelled(self.model.encode(images).mean, self.probed.labels)

    @cached_property
    def probe(self) -> Probe:
        """The linear probe on the model's z."""
        return linear_probe(self.z_probed)

    def worth(self, limit: int) -> int:
        """At most so many training images for a classifier, fewer where it judges few images."""
        return min(limit, PER_JUDGED * len(self.test.images))

    def looked_at(self, limit: int, least: int = 1) -> int:
        """How many of the evaluated images are decoded tens of times; see :func:`looked_at`."""
        return looked_at(limit, len(self.originals), least)

    def studied(self, limit: int, part: str) -> int:
        """How many of them a study of settings decodes in every one.

        Raises:
            Unavailable: too few are evaluated; names the part that asks.
        """
        if count := studied(limit, len(self.originals)):
            return count
        least = PER_STUDIED * FEWEST_STUDIED
        raise Unavailable(f"{part}: {len(self.originals)} images evaluated, {least} are the least")

    def training_rows(self, limit: int) -> np.ndarray:
        """At most so many training images, drawn without replacement, in ascending order."""
        rng = np.random.default_rng(derive_seed(self.config.seed, "latents", "rows"))
        return np.sort(rng.permutation(len(self.train.images))[:limit])

    @cached_property
    def feature_classifier(self) -> FeatureClassifier:
        """The small classifier whose features judge what images look like.

        Raises:
            Unavailable: the training images have no labels, or one class.
        """
        settings = self.config.evaluate.quality
        return train_feature_classifier(
            self.train, self.worth(settings.train_images), settings.steps, self.config.seed
        )

    @property
    def shown_samples(self) -> int:
        """In a grid as wide as the other figures: no more than images are evaluated."""
        columns = self.config.evaluate.figure_images
        return min(columns * min(columns, 8), len(self.originals))

    @cached_property
    def generated(self) -> dict[str, AnyImages]:
        """Samples of the model and of the prior, and as many training images.

        As many as are compared with test images, or shown, whichever is more.
        """
        config, compared = self.config, self.config.evaluate.quality.images
        count = max(self.shown_samples, compared if compared <= len(self.originals) else 0)
        weight, rows = config.reconstruct.guidance, self.training_rows(count)
        return {
            MODEL: self.model.sample(count, guidance=weight, seed=config.seed),
            "prior": self.model.sample_prior(count, seed=config.seed),
            # what two sets of real images of this number differ by
            "train_images": to_unit_range(to_tensor(self.train.images[rows])),
        }

    def first(self, count: int, part: str) -> Images:
        """The first ``count`` evaluated images, all of them.

        Raises:
            Unavailable: there are fewer; names the part that asks.
        """
        if len(self.originals) < count:
            asked = f"{count} images asked for, {len(self.originals)} there"
            raise Unavailable(f"{part}: {asked}; lower evaluate's number")
        return self.originals[:count]


@dataclass
class Found:
    """What a part computed."""

    numbers: Numbers = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # warnings, and what only the numbers can say
    reasons: dict[str, str] = field(default_factory=dict)  # metric -> why it is None
    cards: list[Card] = field(default_factory=list)  # headline numbers beside those of metrics
    page: list[Table] = field(default_factory=list)  # tables for the page alone
    cautions: list[str] = field(default_factory=list)  # what stands beside the headline numbers


@dataclass(frozen=True)
class Caption:
    """What a figure says, and what it shows to those who do not see it."""

    text: str
    alt: str


@dataclass(frozen=True)
class Columns:
    """A CSV table, and how the page shows its rows; it does not where ``shown`` is absent."""

    names: tuple[str, ...]
    caption: str = ""
    shown: Callable[[Row], Row] | None = None


@dataclass(frozen=True)
class Part:
    """One analysis."""

    name: str  # in reports of progress, reasons and costs
    title: str
    text: str  # what the page says of it
    compute: Callable[[Subject], Found]  # raises Unavailable where it cannot be had
    settings: str | None = None  # its entry under ``evaluate``, which ``images: 0`` switches off
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    # Whose numbers it gives: systems, if they are of the run, and what stands beside them. All of
    # the metrics, or some.
    rows: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    tables: Mapping[str, Columns] = field(default_factory=dict)
    figures: Mapping[str, Caption] = field(default_factory=dict)
    lead: str = ""  # the figure that stands at the top of the page, before all numbers
    note: str = ""  # below the table of numbers

    def settings_of(self, config: Config) -> Section | None:
        """Its section of the parameters, if it has one."""
        return None if self.settings is None else getattr(config.evaluate, self.settings)

    def is_on(self, config: Config) -> bool:
        """Whether it was not switched off."""
        return getattr(self.settings_of(config), "images", 1) != 0

    def nothing(self, config: Config) -> Numbers:
        """The numbers that it would give, all None."""
        absent = SYSTEMS.keys() - systems_of(config)
        return {
            row: dict.fromkeys(self.metrics if names is None else names)
            for row, names in self.rows.items()
            if row not in absent
        }
