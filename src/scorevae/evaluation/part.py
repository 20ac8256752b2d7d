"""What the stage evaluate finds out beyond the comparison: parts that can be switched off.

Each part is a function of a :class:`Subject` that returns a :class:`Part`: numbers for
``metrics.json``, tables, figures. One that cannot be had on these data raises
:class:`scorevae.errors.MetricUnavailable`; the reason is reported, the rest goes on.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from scorevae.autoencoders import ScoreVAE, VAEBaseline
from scorevae.config import Config
from scorevae.data.arrays import (
    Split,
    to_tensor,
    to_unit_range,
)
from scorevae.errors import MetricUnavailable
from scorevae.evaluation import features as quality
from scorevae.evaluation import latent_figures
from scorevae.evaluation import probe as latents
from scorevae.evaluation.bound import Bound, likelihood_bound
from scorevae.evaluation.figures import Figure
from scorevae.evaluation.likelihood_figures import integrand_figure
from scorevae.evaluation.ode import ode_log_likelihood
from scorevae.evaluation.parts import samplers as study
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions, load
from scorevae.shapes import Images

Value = float | int | None
Numbers = dict[str, dict[str, Value]]
Rows = list[dict[str, Value | str]]

ODE_TOLERANCE = 1e-3  # of RK45; off by 0.02 bits on digits, below the error over images
PERPLEXITY = 30.0  # of t-SNE
EDITS_PER_CLASS = 2

# The columns of every table that a part may write, so that a file exists where it did not.
TABLES = {
    "integrand": ["log_snr", "prior", "scorevae"],
    "samplers": study.COLUMNS,
    "guidance": study.COLUMNS,
    "probe_over_time": ["t", "accuracy", "balanced", "majority"],
    "edits": ["strength", "share_of_target"],
    "costs": ["part", "seconds"],
}


@dataclass(frozen=True)
class Subject:
    """What is analysed."""

    config: Config
    model: ScoreVAE
    vae: VAEBaseline
    train: Split
    test: Split  # the evaluated images
    reconstructions: Path  # of the stage reconstruct
    names: Mapping[int, str]  # of the classes

    @cached_property
    def originals(self) -> Images:
        """The evaluated images in [0, 1]."""
        return to_unit_range(to_tensor(self.test.images))

    @cached_property
    def systems(self) -> dict[str, Reconstructions]:
        """Reconstructions of ScoreVAE and of the VAE."""
        folder = self.reconstructions
        return {name: load(folder, name, self.originals) for name in ("scorevae", "vae")}

    @cached_property
    def probed(self) -> Split:
        """The training images that probes learn from."""
        limit = self.config.evaluate.probes.train_images
        rows = latents.training_rows(len(self.train.images), limit, self.config.seed)
        labels = self.train.labels
        return Split(self.train.images[rows], None if labels is None else labels[rows])

    @cached_property
    def z_probed(self) -> torch.Tensor:
        """ScoreVAE's z of them."""
        return self.model.encode(to_unit_range(to_tensor(self.probed.images))).mean

    @property
    def z(self) -> torch.Tensor:
        """ScoreVAE's z of the evaluated images."""
        return self.systems["scorevae"].posterior.mean

    @cached_property
    def probe(self) -> latents.Probe:
        """The linear probe on ScoreVAE's z."""
        return latents.linear_probe(latents.labelled(self.z_probed, self.probed.labels))

    @cached_property
    def generated(self) -> dict[str, Images]:
        """Samples of ScoreVAE and of the prior, and as many training images."""
        config, count = self.config, self.config.evaluate.quality.images
        rows = latents.training_rows(len(self.train.images), count, config.seed)
        weight = config.reconstruct.guidance
        return {
            "scorevae": self.model.sample(count, guidance=weight, seed=config.seed),
            "prior": self.model.sample_prior(count, seed=config.seed),
            # what two sets of real images of this number differ by
            "train_images": to_unit_range(to_tensor(self.train.images[rows])),
        }


@dataclass
class Part:
    """What one part found."""

    numbers: Numbers = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def likelihood(subject: Subject) -> Part:
    """The bound with z and of the prior alone; the prior's likelihood by the ODE."""
    settings, model, seed = subject.config.evaluate.likelihood, subject.model, subject.config.seed
    x_0 = to_tensor(subject.test.images[: settings.images]).to(model.device)
    bounds = likelihood_bound(
        x_0,
        sde=model.sde,
        prior=model.prior_score,
        encoder=model.encoder,
        log_determinant=model.log_determinant,
        repeats=settings.repeats,
        draws=settings.draws,
        batch=subject.config.reconstruct.batch,
        seed=seed,
    )
    assert bounds.scorevae is not None
    numbers: Numbers = {
        "scorevae": _bits(bounds.scorevae),
        "prior": {k: v for k, v in _bits(bounds.prior).items() if k != "bits_rate"},
    }
    if settings.ode_images > 0:
        ode = ode_log_likelihood(
            x_0[: settings.ode_images],
            sde=model.sde,
            prior=model.prior_score,
            repeats=1,
            batch=subject.config.reconstruct.batch,
            seed=seed,
            tolerance=ODE_TOLERANCE,
        ).bits_per_dimension()
        numbers["prior"] |= {
            "ode_bits_per_dim": ode.mean,
            "ode_bits_per_dim_error": ode.image_error,
        }
    columns = zip(
        bounds.prior.integrand.log_snr.tolist(),
        bounds.prior.integrand.mean.tolist(),
        bounds.scorevae.integrand.mean.tolist(),
        strict=True,
    )
    rows: Rows = [{"log_snr": a, "prior": b, "scorevae": c} for a, b, c in columns]
    return Part(numbers, {"integrand": rows}, {"integrand": integrand_figure(bounds)})


def _bits(bound: Bound) -> dict[str, Value]:
    """``bits_per_dim`` with its two standard errors, and every term."""
    parts = bound.bits_per_dimension()
    total = parts.pop("total")
    numbers: dict[str, Value] = {
        "bits_per_dim": total.mean,
        "bits_per_dim_error": total.monte_carlo_error,
        "bits_per_dim_image_error": total.image_error,
    }
    return numbers | {f"bits_{name}": value.mean for name, value in parts.items()}


def samplers(subject: Subject) -> Part:
    """L2, SSIM, sharpness and seconds of every sampler at several costs, from one x_1."""
    config, settings = subject.config, subject.config.evaluate.samplers
    trials = study.try_samplers(
        subject.model,
        subject.originals[: settings.images],
        subject.z[: settings.images],
        study.sampler_settings(settings.evaluations, settings.grids, config.sampling),
        guidance=config.reconstruct.guidance,
        seed=config.seed,
    )
    best, enough = min(trials, key=lambda trial: trial.l2), study.recommended(trials)
    note = (
        f"Best L2: {_described(best)}. Fewest evaluations whose L2 is within 2 % of it, or within "
        f"10 % and the noise of {len(best.distances)} images (two standard errors of the "
        f"difference): {_described(enough)}."
    )
    rows = [trial.record() for trial in trials]
    return Part({}, {"samplers": rows}, {"samplers": study.sampler_figure(trials)}, [note])


def _described(trial: study.Trial) -> str:
    return (
        f"{trial.sampler} on the grid {trial.grid} with {trial.evaluations} (L2 {trial.l2:.4f}, "
        f"sharpness {trial.sharpness:.3f})"
    )


def guidance(subject: Subject) -> Part:
    """L2 and sharpness for each γ; γ = 0 is the prior alone."""
    settings = subject.config.evaluate.guidance
    originals, z = subject.originals[: settings.images], subject.z[: settings.images]
    trials = study.try_guidance(
        subject.model, originals, z, settings.weights, seed=subject.config.seed
    )
    rows = [trial.record() for trial in trials]
    return Part({}, {"guidance": rows}, {"guidance": study.guidance_figure(trials)})


def probes(subject: Subject) -> Part:
    """How well simple classifiers read labels from z, from the VAE's z and from pixels."""
    settings, labels = subject.config.evaluate.probes, subject.probed.labels
    asked_labels = None if subject.test.labels is None else subject.test.labels[: settings.images]
    images = to_unit_range(to_tensor(subject.probed.images))
    codes = {
        "scorevae": (subject.z_probed, subject.z),
        "vae": (subject.vae.encode(images).mean, subject.systems["vae"].posterior.mean),
        "pixels": (images.flatten(1), subject.originals.flatten(1)),
    }
    numbers: Numbers = {}
    for name, (train, test) in codes.items():
        known = latents.labelled(train, labels)
        asked = latents.labelled(test[: settings.images], asked_labels)
        linear = subject.probe if name == "scorevae" else latents.linear_probe(known)
        near = latents.neighbour_probe(known, neighbours=settings.neighbours)
        numbers[name] = {
            "linear_probe": latents.judge(linear, asked).accuracy,
            "neighbours": latents.judge(near, asked).accuracy,
        }
    rows, figure = _probe_over_time(subject)
    return Part(numbers, {"probe_over_time": rows}, {"probe_over_time": figure})


def _probe_over_time(subject: Subject) -> tuple[Rows, Figure]:
    config, count = subject.config, subject.config.evaluate.probes.images
    noised = {
        t: subject.model.encode_at(subject.originals[:count], t, seed=config.seed).mean
        for t in config.evaluate.probes.times
    }
    assert subject.test.labels is not None
    accuracies = latents.accuracy_over_time(subject.probe, noised, subject.test.labels[:count])
    rows: Rows = [{"t": t, **accuracy._asdict()} for t, accuracy in accuracies.items()]
    return rows, latent_figures.probe_curve(accuracies, "what the encoder reads in noised images")


def embedding(subject: Subject) -> Part:
    """t-SNE of the z of test images, coloured by label."""
    count = subject.config.evaluate.embedding.images
    points = latents.embed(subject.z[:count], perplexity=PERPLEXITY, seed=subject.config.seed)
    labels = subject.test.labels
    colours = None if labels is None else latents.label_column(labels[:count])
    title = "t-SNE of z" if labels is None else "t-SNE of z, coloured by label"
    figure = latent_figures.embedding(points, colours, title, subject.names)
    return Part(figures={"embedding": figure})


def interpolations(subject: Subject) -> Part:
    """Lines and arcs between the z of pairs of test images, from the same noise."""
    settings, config = subject.config.evaluate.interpolations, subject.config
    pairs = latents.first_images(subject.originals, 2 * settings.images, "interpolations")
    first, second = pairs.split(settings.images)
    start, end = subject.z[: 2 * settings.images].split(settings.images)
    decoded = [
        subject.model.decode_groups(
            path(start, end, settings.steps),
            guidance=config.reconstruct.guidance,
            seed=config.seed,
        )
        for path in (latents.line, latents.arc)
    ]
    figure = latent_figures.interpolations(first, second, *decoded)
    return Part(figures={"interpolations": figure})


def edits(subject: Subject) -> Part:
    """z moved from one class towards another; how often a classifier sees the target."""
    settings, config = subject.config.evaluate.edits, subject.config
    direction = latents.class_direction(latents.labelled(subject.z_probed, subject.probed.labels))
    labels = latents.label_column(latents.labelled(subject.z, subject.test.labels).labels)
    rows = latents.rows_to_edit(labels, direction, settings.images)
    edited = subject.model.decode_groups(
        latents.edit(subject.z[rows], direction, settings.strengths),
        guidance=config.reconstruct.guidance,
        seed=config.seed,
    )
    classifier = quality.train_feature_classifier(
        subject.probed, len(subject.probed.images), config.evaluate.quality.steps, config.seed
    )
    shares = latents.share_of_target(classifier.predict, edited, direction)
    pairs = zip(settings.strengths, shares, strict=True)
    table: Rows = [{"strength": s, "share_of_target": share} for s, share in pairs]
    shown = _both_ends(len(rows))
    figure = latent_figures.edits(
        subject.originals[rows][shown],
        edited[shown],
        settings.strengths,
        direction,
        subject.names,
    )
    return Part({}, {"edits": table}, {"edits": figure})


def _both_ends(count: int) -> list[int]:
    """A few of the first rows and as many of the second half: some of either class."""
    half = count // 2
    shown = min(EDITS_PER_CLASS, half)
    return [*range(shown), *range(half, half + shown)]


def draws(subject: Subject) -> Part:
    """Several images for one z ~ q(z|x_0): their spread, and the L2 of their mean."""
    settings, config = subject.config.evaluate.draws, subject.config
    originals = subject.originals[: settings.images]
    noise = make_generator("cpu", config.seed, "draws", "z")
    z = subject.systems["scorevae"].posterior.sample(noise)
    drawn = subject.model.decode_draws(
        z[: settings.images],
        settings.count,
        guidance=config.reconstruct.guidance,
        seed=config.seed,
    )
    spread = latents.spread(originals, drawn)
    numbers: dict[str, Value] = {
        "l2_of_one_draw": spread.l2_one,
        "l2_of_mean": spread.l2_mean,
        "pixel_std": spread.pixel_std,
        "calibration": spread.calibration,
    }
    shown = slice(0, 4)
    part = spread._replace(mean=spread.mean[shown], std=spread.std[shown])
    figure = latent_figures.draws(originals[shown], drawn[shown], part)
    return Part({"scorevae": numbers}, {}, {"draws": figure})


def shuffled(subject: Subject) -> Part:
    """Is z used? L2 with the z of another image, from the same noise."""
    settings, config = subject.config.evaluate.shuffled, subject.config
    originals = subject.originals[: settings.images]
    partner = latents.derangement(len(originals), config.seed)
    z = subject.z[: settings.images]
    own, other = subject.model.decode_groups(
        torch.stack([z, z[partner]], dim=1), guidance=config.reconstruct.guidance, seed=config.seed
    ).unbind(dim=1)
    found = latents.shuffled_z(originals, own, other)
    shown = slice(0, config.evaluate.figure_images)
    figure = latent_figures.shuffled(
        originals[shown], own[shown], other[shown], originals[partner][shown]
    )
    numbers: dict[str, Value] = {"l2_shuffled_z": found.l2_shuffled, "shuffled_ratio": found.ratio}
    notes = [found.warning] if found.warning else []
    return Part({"scorevae": numbers}, {}, {"shuffled_z": figure}, notes)


def classifier_distances(subject: Subject) -> Part:
    """Distances of samples to test images in the features of a small classifier."""
    settings, seed = subject.config.evaluate.quality, subject.config.seed
    features = quality.train_feature_classifier(
        subject.train, settings.train_images, settings.steps, seed
    ).features
    return _distances(subject, features, "classifier_fd", "classifier_kd")


def inception_distances(subject: Subject) -> Part:
    """FID and KID of samples against test images."""
    own = subject.config.evaluate.quality.inception
    size = subject.config.selected.data.image.size
    path = quality.locate_inception(own, size)
    features = quality.load_inception(path, subject.model.device)
    return _distances(subject, features, "fid", "kid")


def _distances(subject: Subject, features: quality.FeatureFn, frechet: str, kernel: str) -> Part:
    count = subject.config.evaluate.quality.images
    reference = latents.first_images(subject.originals, count, "sample quality")
    numbers: Numbers = {}
    for name, images in subject.generated.items():
        found = quality.distances(features, images, reference)
        numbers[name] = {frechet: found.frechet, kernel: found.kernel}
    return Part(numbers)


# name -> (part, the setting under `evaluate` whose `images: 0` switches it off)
PARTS: dict[str, tuple[Callable[[Subject], Part], str]] = {
    "likelihood": (likelihood, "likelihood"),
    "samplers": (samplers, "samplers"),
    "guidance": (guidance, "guidance"),
    "probes": (probes, "probes"),
    "embedding": (embedding, "embedding"),
    "interpolations": (interpolations, "interpolations"),
    "edits": (edits, "edits"),
    "draws": (draws, "draws"),
    "shuffled": (shuffled, "shuffled"),
    "classifier_distances": (classifier_distances, "quality"),
    "inception_distances": (inception_distances, "quality"),
}

# What a part would have reported, to be null with the part's reason where it cannot be had.
NUMBERS: dict[str, dict[str, list[str]]] = {
    "likelihood": {"scorevae": ["bits_per_dim"], "prior": ["bits_per_dim", "ode_bits_per_dim"]},
    "probes": {name: ["linear_probe", "neighbours"] for name in ("scorevae", "vae", "pixels")},
    "draws": {"scorevae": ["l2_of_one_draw", "l2_of_mean"]},
    "shuffled": {"scorevae": ["l2_shuffled_z", "shuffled_ratio"]},
    "classifier_distances": {
        name: ["classifier_fd", "classifier_kd"] for name in ("scorevae", "prior", "train_images")
    },
    "inception_distances": {
        name: ["fid", "kid"] for name in ("scorevae", "prior", "train_images")
    },
}


@dataclass
class Analysis:
    """What all parts found, put together."""

    parts: dict[str, Part] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # part -> why it is not there
    seconds: dict[str, float] = field(default_factory=dict)

    def numbers(self) -> Numbers:
        """By system and metric; null where a part that is switched on could not be had."""
        merged: Numbers = {}
        for name in PARTS:
            if name in self.parts:
                found = self.parts[name].numbers
            elif name in self.reasons:
                found = {s: dict.fromkeys(m) for s, m in NUMBERS.get(name, {}).items()}
            else:
                continue
            for system, values in found.items():
                merged.setdefault(system, {}).update(values)
        return merged

    def tables(self) -> Iterator[tuple[str, list[str], Rows]]:
        """Name, columns and rows of every table; no rows where the part did not run."""
        rows = {k: v for part in self.parts.values() for k, v in part.tables.items()}
        rows["costs"] = [{"part": k, "seconds": v} for k, v in self.seconds.items()]
        for name, columns in TABLES.items():
            yield name, columns, rows.get(name, [])

    def figures(self) -> dict[str, Figure]:
        """Every figure by its name."""
        return {k: v for part in self.parts.values() for k, v in part.figures.items()}


def analyse(subject: Subject, report: Callable[[str], None]) -> Analysis:
    """Run the parts that are switched on, one after the other."""
    result = Analysis()
    for name, (part, key) in PARTS.items():
        if getattr(subject.config.evaluate, key).images == 0:
            continue
        report(name)
        started = time.perf_counter()
        try:
            result.parts[name] = part(subject)
        except MetricUnavailable as reason:
            result.reasons[name] = str(reason)
            report(f"{name} is null: {reason}")
        result.seconds[name] = time.perf_counter() - started
    return result
