"""Test L2 against training seconds, with and without the warm start, as a figure.

    python benchmarks/warm_start.py           # after dvc repro; writes docs/warm_start.{png,csv}

For another preset than digits its name is appended to the files.

Both curves train the encoder of params.yaml on the pipeline's own prior and VAE. The one with
the warm start is charged with the VAE's training too. Seconds exclude the evaluations of L2.
"""

import csv
import time
from collections.abc import Callable

import click
import matplotlib.pyplot as plt
from accelerate import Accelerator
from common import DOCS, ROOT, NoState, Trained, open_trained
from torch import nn

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import TrainingConfig
from scorevae.data.batches import batches
from scorevae.evaluation.figures import save
from scorevae.evaluation.metrics import l2_distances
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder, copy_trunk
from scorevae.networks.prior import load_prior
from scorevae.networks.vae import load_vae
from scorevae.objectives import EncoderObjective, Objective, WarmStartObjective
from scorevae.randomness import global_seed
from scorevae.runtime.files import replacing
from scorevae.score import prior_score
from scorevae.training.loop import fit

Point = tuple[float, float]


class Experiment:
    """The encoder's training on a finished pipeline, with a clock that stops for evaluations."""

    def __init__(self, trained: Trained, every: int, now: Callable[[], float]) -> None:
        self.trained, self.every, self.now = trained, every, now
        config = trained.config
        self.prior = load_prior(trained.models / "prior.safetensors")
        self.vae = load_vae(trained.models / "vae.safetensors").network
        self.settings = config.selected.encoder
        self.header = EncoderHeader(
            image=config.selected.data.image, sde=config.sde, latent=config.selected.latent,
            network=self.settings.network, log_determinant=config.objective.log_determinant,
        )  # fmt: skip
        score = prior_score(self.prior.network, self.prior.sde)
        self.objective = EncoderObjective(
            config.objective, sde=self.prior.sde, prior=score, beta=config.beta,
            latent=config.selected.latent,
        )  # fmt: skip
        self.regression = WarmStartObjective(
            self.settings.warm_start, sde=self.prior.sde, teacher=self.vae.encoder
        )

    def build(self) -> nn.Module:
        """A fresh encoder, the same for both curves."""
        with global_seed(self.trained.config.seed, "benchmark"):
            return self.header.build()

    def l2(self, network: nn.Module) -> float:
        """Test L2 with the sampler of params.yaml."""
        encoder = TrainedEncoder(network, self.header)
        config = self.trained.config
        model = ScoreVAE(self.prior, encoder, device="cpu", sampling=config.sampling)
        images = model.reconstruct(self.trained.originals, guidance=config.reconstruct.guidance)
        return l2_distances(self.trained.originals, images).mean().item()

    def train(
        self, network: nn.Module, objective: Objective, settings: TrainingConfig, offset: float
    ) -> tuple[nn.Module, list[Point]]:
        """Train and return the points (seconds since ``offset`` seconds ago, L2)."""
        clock = _Clock(self.now, offset)
        points: list[Point] = []

        def validate(module: nn.Module) -> dict[str, float]:
            seconds = clock.stop()
            points.append((seconds, self.l2(module)))
            click.echo(f"{points[-1][0]:7.1f} s  L2 {points[-1][1]:.4f}")
            clock.start()
            return {}

        trained = fit(
            network, objective,
            batches(
                self.trained.train.images, settings.batch, self.trained.config.seed,
                flip=self.trained.config.selected.flip,
            ),
            settings.model_copy(update={"validate_every": self.every}),
            seed=self.trained.config.seed, name="benchmark", record=lambda step, numbers: None,
            validate=validate, state=NoState(), accelerator=Accelerator(cpu=True),
        )  # fmt: skip
        return trained, points


class _Clock:
    """Seconds of training, evaluations left out, by the wall or by the processor."""

    def __init__(self, now: Callable[[], float], offset: float) -> None:
        self._now, self._seconds, self._since = now, offset, now()

    def stop(self) -> float:
        self._seconds += self._now() - self._since
        return self._seconds

    def start(self) -> None:
        self._since = self._now()


def vae_seconds() -> float:
    """What the VAE's training took, from the pipeline's own curve."""
    with (ROOT / "results/digits/curves/vae.csv").open(newline="") as file:
        return max(float(row["seconds"]) for row in csv.DictReader(file))


RECIPES = {"without": "the paper's objective alone", "with": "VAE, warm start, objective"}
Curves = dict[str, list[Point]]


def train_without(run: Experiment, factor: float) -> list[Point]:
    """The paper's recipe, for ``factor`` times the preset's steps."""
    settings = run.settings.training
    longer = settings.model_copy(update={"steps": int(factor * settings.steps)})
    return run.train(run.build(), run.objective, longer, 0.0)[1]


def train_with(run: Experiment) -> list[Point]:
    """The preset's recipe, charged with the VAE."""
    encoder = run.build()
    copy_trunk(run.vae.encoder, encoder)
    warm_start = run.settings.warm_start.training
    encoder, warm = run.train(encoder, run.regression, warm_start, vae_seconds())
    return [*warm, *run.train(encoder, run.objective, run.settings.training, warm[-1][0])[1]]


@click.command(help=__doc__)
@click.option("--every", default=250, help="steps between evaluations of L2")
@click.option("--factor", default=2.0, help="objective steps without warm start over those with")
@click.option("--images", default=360, help="test images that L2 is evaluated on")
@click.option("--steps", type=int, help="of the objective with warm start; else the preset's")
@click.option("--cpu-time", is_flag=True, help="the processor's seconds: on a busy machine")
@click.option("--recipe", type=click.Choice(list(RECIPES)), help="one of the two only")
def main(
    every: int, factor: float, images: int, steps: int | None, cpu_time: bool, recipe: str | None
) -> None:
    """Train both ways and draw the figure."""
    trained = open_trained()
    now = time.process_time if cpu_time else time.perf_counter
    run = Experiment(trained._replace(originals=trained.originals[:images]), every, now)
    if steps is not None:
        shorter = run.settings.training.model_copy(update={"steps": steps})
        run.settings = run.settings.model_copy(update={"training": shorter})
    preset = trained.config.preset
    name = "warm_start" if preset == "digits" else f"warm_start_{preset}"
    curves = read(name)
    if recipe != "with":
        curves[RECIPES["without"]] = train_without(run, factor)
    if recipe != "without":
        curves[RECIPES["with"]] = train_with(run)
    write(name, curves)


def read(name: str) -> Curves:
    """The numbers of an earlier run, so that the recipes may be run one by one."""
    curves: Curves = {}
    path = DOCS / f"{name}.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                point = float(row["seconds"]), float(row["l2"])
                curves.setdefault(row["recipe"], []).append(point)
    return curves


def write(name: str, curves: Curves) -> None:
    """The figure and its numbers."""
    with replacing(DOCS / f"{name}.csv") as temporary, temporary.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "seconds", "l2"])
        writer.writerows((n, f"{s:.1f}", f"{v:.4f}") for n, p in curves.items() for s, v in p)
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for recipe, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=recipe)
    axis.set(xlabel="training seconds", ylabel="test L2", yscale="log")
    axis.legend()
    save(figure, DOCS / f"{name}.png")


if __name__ == "__main__":
    main()
