"""The objective beside a prior that is too slow to be asked at every step, as on a CPU.

    python benchmarks/pooled.py --data data/cifar10_small --models FOLDER --beta 0.01 \
      --output FOLDER

A frozen prior says the same of the same noised images. So it is asked once for each of a pool of
batches, whose images, times and noise follow from the seed, and the steps go through the pool,
epoch by epoch, in another order each; the noise of z is fresh in every step. What the prior said
is kept in --pool, for every β and weighting, apart for other data, times, seeds and priors.
Starts from the encoder in --models (same_code.py, or an earlier run) and writes it, trained on,
beside the same prior.

With --corrector the encoder is frozen as well, and asked with the prior; what is trained is the
corrector of ScoreVAE+, which is written beside the two. The noise of z then belongs to the pool.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate import Accelerator
from common import NoState, at_beta
from safetensors.torch import load_file, save_file
from torch import nn

from scorevae.autoencoders.names import CORRECTOR, ENCODER
from scorevae.config import Config, TrainingConfig
from scorevae.data.arrays import load_split, to_tensor
from scorevae.data.batches import batches
from scorevae.gaussian import normal_like
from scorevae.networks.corrector import CorrectorHeader
from scorevae.networks.encoder import TrainedEncoder, load_encoder
from scorevae.networks.prior import PRIOR, load_prior
from scorevae.networks.weights import save_weights
from scorevae.objectives import (
    CorrectorObjective,
    EncoderObjective,
    LatentDraw,
    LatentObjective,
    Losses,
    Objective,
)
from scorevae.randomness import derive_seed, global_seed, make_generator
from scorevae.runtime.arithmetic import chosen_precision
from scorevae.runtime.files import replacing, sha256
from scorevae.runtime.state import state_key
from scorevae.score import Posterior, ScoreFn, prior_score
from scorevae.sde import SDE
from scorevae.shapes import Data, PerSample
from scorevae.training.loop import fit

PATH = click.Path(path_type=Path)
SHOWN = 128  # test images


class Pool:
    """A prior that is asked once for each of a number of batches; a score, as it is."""

    def __init__(self, prior: ScoreFn, count: int, folder: Path, seed: int) -> None:
        self._prior, self._count, self._folder, self._seed = prior, count, folder, seed
        self.index: int | None = None  # of the batch whose turn it is; None is none of them
        folder.mkdir(parents=True, exist_ok=True)

    def turn(self, step: int) -> int:
        """Take the batch of a step."""
        epoch, place = divmod(step, self._count)
        order = np.random.default_rng(derive_seed(self._seed, "pool", "order", epoch))
        self.index = int(order.permutation(self._count)[place])
        return self.index

    def __call__(self, x_t: Data, t: PerSample) -> Data:
        """What the prior says, or said."""
        if self.index is None:
            return self._prior(x_t, t)
        path = self._folder / f"{self.index}.safetensors"
        if not path.exists():
            score = self._prior(x_t, t).contiguous()
            with replacing(path) as temporary:
                save_file({"score": score}, temporary)
        return load_file(path)["score"]

    def generator(self) -> torch.Generator:
        """Of the times and the noise that belong to the batch."""
        return make_generator("cpu", self._seed, "pool", self.index or 0)


@dataclass(frozen=True)
class Pooled(Objective):
    """An objective of batches that come again, with times and ε of the pool."""

    objective: LatentObjective
    pool: Pool

    def draw(self, x_0: Data, generator: torch.Generator) -> LatentDraw:
        """Times and ε of the pool, and fresh noise of z."""
        times, noise, _ = self.objective.draw(x_0, self.pool.generator())
        return times, noise, normal_like(x_0, generator, self.objective.latent)

    def frozen(self, x_0: Data, draw: LatentDraw) -> Any:  # noqa: ANN401 (the objective's own)
        """As the objective has it, whose prior is the pool."""
        return self.objective.frozen(x_0, draw)

    def trained(self, module: Any, x_0: Data, draw: LatentDraw, frozen: Any) -> Losses:  # noqa: ANN401
        """As the objective has them."""
        return self.objective.trained(module, x_0, draw, frozen)


def settings_of(
    own: TrainingConfig, batch: int, steps: int, learning_rate: float
) -> TrainingConfig:
    """The preset's; in bf16 where it says so and the CPU has it."""
    every, precision = max(1, steps // 10), chosen_precision(own.precision, torch.device("cpu"))
    changes = {"batch": batch, "steps": steps, "log_every": every, "validate_every": every}
    return own.model_copy(
        update={**changes, "learning_rate": learning_rate, "precision": precision}
    )


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="prior.safetensors, encoder.safetensors")
@click.option("--beta", type=float, required=True)
@click.option("--preset", default="cifar10_small", help="whose settings train")
@click.option("--corrector", is_flag=True, help="train that of ScoreVAE+; the encoder is frozen")
@click.option("--weighting", default="simple", help="simple (σ²) | likelihood")
@click.option("--times", default="uniform", help="uniform | log_snr")
@click.option("--batches", "count", default=160, help="of the pool")
@click.option("--pool", "kept", type=PATH, default=Path("pool"), help="folder of what it said")
@click.option("--steps", default=1600)
@click.option("--learning-rate", default=5e-4)
@click.option("--output", type=PATH, required=True, help="folder for the weights")
def main(
    data: Path, models: Path, beta: float, preset: str, corrector: bool, weighting: str,
    times: str, count: int, kept: Path, steps: int, learning_rate: float, output: Path,
) -> None:  # fmt: skip
    """Ask the prior, train, save."""
    config = Config.model_validate(at_beta(preset, beta, weighting, times))
    chosen, seed = config.selected, config.seed
    paths = models / PRIOR, models / ENCODER
    prior, encoder = load_prior(paths[0]), load_encoder(paths[1])
    image = encoder.header.image
    own = chosen.corrector.training if corrector else chosen.encoder.training
    settings = settings_of(own, chosen.encoder.training.batch, steps, learning_rate)
    given: list[float | str] = [seed, settings.batch, times, chosen.flip, settings.precision]
    key = state_key(given, [paths[0], data / "train_images.npy"])
    pool = Pool(prior_score(prior.network, prior.sde), count, kept / key, seed)
    module, header, objective = (
        corrected(config, prior.sde, pool, encoder, paths)
        if corrector
        else (
            encoder.network, encoder.header,
            EncoderObjective(config.objective, prior.sde, encoder.header.latent, pool, beta),
        )
    )  # fmt: skip
    images = batches(
        load_split(data, "train", image).images, settings.batch, seed, flip=chosen.flip
    )
    validate = validation(
        objective, to_tensor(load_split(data, "test", image, SHOWN).images), seed
    )
    validate(module)
    trained = fit(
        module, Pooled(objective, pool), lambda step: images(pool.turn(step)), settings, seed=seed,
        name="pooled", record=lambda step, numbers: None, validate=validate, state=NoState(),
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    written = output / (CORRECTOR if corrector else ENCODER)
    written.parent.mkdir(parents=True, exist_ok=True)
    save_weights(written, trained, header)
    for path in paths if corrector else paths[:1]:
        shutil.copyfile(path, output / path.name)


def corrected(
    config: Config, sde: SDE, pool: Pool, encoder: TrainedEncoder, paths: tuple[Path, Path]
) -> tuple[nn.Module, CorrectorHeader, LatentObjective]:
    """An untrained corrector of the pair, and what trains it."""
    own = encoder.header
    header = CorrectorHeader(
        image=own.image, sde=own.sde, latent=own.latent, encoder=own.network,
        network=config.selected.corrector.network,
        prior_sha256=sha256(paths[0]), encoder_sha256=sha256(paths[1]),
    )  # fmt: skip
    with global_seed(config.seed, "corrector"):
        network = header.build()
    pair = Posterior(pool, encoder.network, log_determinant=own.log_determinant == "full")
    return network, header, CorrectorObjective(config.objective, sde, own.latent, pair)


def validation(
    objective: LatentObjective, x: Data, seed: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Losses of test images, with what is frozen asked once."""
    draw = objective.draw(x, make_generator("cpu", seed, "validation"))
    said = objective.frozen(x, draw)

    def validate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            losses = objective.trained(module, x, draw, said)
        means = {f"test_{name}": values.mean().item() for name, values in losses.items()}
        click.echo(", ".join(f"{name} {value:.2f}" for name, value in means.items()))
        return means

    return validate


if __name__ == "__main__":
    main()
