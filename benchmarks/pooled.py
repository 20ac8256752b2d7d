"""The objective beside a prior that is too slow to be asked at every step, as on a CPU.

    python benchmarks/pooled.py --data data/cifar10_small --models FOLDER --beta 0.01 \
      --output FOLDER

A frozen prior says the same of the same noised images. So it is asked once for each of a pool of
batches, whose images, times and noise follow from the seed, and the steps go through the pool,
epoch by epoch, in another order each; the noise of z is fresh in every step. What the prior said
is kept in --pool, for every β and weighting, apart for other data, times, seeds and priors.
Starts from the encoder in --models (same_code.py, or an earlier run) and writes it, trained on,
beside the same prior.
"""

import shutil
from pathlib import Path

import click
import numpy as np
import torch
from accelerate import Accelerator
from common import NoState, at_beta
from safetensors.torch import load_file, save_file
from torch import nn

from scorevae.config import Config, TrainingConfig
from scorevae.data.arrays import load_split, to_tensor
from scorevae.data.batches import batches
from scorevae.gaussian import normal_like
from scorevae.networks.encoder import load_encoder
from scorevae.networks.prior import load_prior
from scorevae.networks.weights import save_weights
from scorevae.objectives import EncoderObjective, LatentDraw, Losses, Objective
from scorevae.randomness import derive_seed, make_generator
from scorevae.runtime.files import replacing
from scorevae.runtime.state import state_key
from scorevae.score import Encoder, prior_score
from scorevae.shapes import Data
from scorevae.training.loop import Batches, fit

PATH = click.Path(path_type=Path)
SHOWN = 128  # test images


class Pooled(Objective):
    """The objective of batches that come again, with what the prior said of each."""

    def __init__(
        self, objective: EncoderObjective, images: Batches, count: int, folder: Path, seed: int
    ) -> None:
        self.objective, self.folder = objective, folder
        self._images, self._count, self._seed = images, count, seed
        self._index = 0
        folder.mkdir(parents=True, exist_ok=True)

    def batch(self, step: int) -> Data:
        """The images of a step, of which the objective is asked next."""
        epoch, place = divmod(step, self._count)
        order = np.random.default_rng(derive_seed(self._seed, "pool", "order", epoch))
        self._index = int(order.permutation(self._count)[place])
        return self._images(self._index)

    def draw(self, x_0: Data, generator: torch.Generator) -> LatentDraw:
        """Times and ε of the pool, and fresh noise of z."""
        fixed = make_generator("cpu", self._seed, "pool", self._index)
        times, noise, _ = self.objective.draw(x_0, fixed)
        return times, noise, normal_like(x_0, generator, self.objective.latent)

    def frozen(self, x_0: Data, draw: LatentDraw) -> Data:
        """The prior's score, once it was asked."""
        path = self.folder / f"{self._index}.safetensors"
        if not path.exists():
            score = self.objective.frozen(x_0, draw).contiguous()
            with replacing(path) as temporary:
                save_file({"score": score}, temporary)
        return load_file(path)["score"]

    def trained(self, module: Encoder, x_0: Data, draw: LatentDraw, frozen: Data) -> Losses:
        """As the objective has them."""
        return self.objective.trained(module, x_0, draw, frozen)


def settings_of(own: TrainingConfig, steps: int, learning_rate: float) -> TrainingConfig:
    """The preset's."""
    every = max(1, steps // 10)
    changes = {"steps": steps, "precision": "float32", "log_every": every, "validate_every": every}
    return own.model_copy(update={**changes, "learning_rate": learning_rate})


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="prior.safetensors, encoder.safetensors")
@click.option("--beta", type=float, required=True)
@click.option("--preset", default="cifar10_small", help="whose settings train the encoder")
@click.option("--weighting", default="simple", help="simple (σ²) | likelihood")
@click.option("--times", default="uniform", help="uniform | log_snr")
@click.option("--batches", "count", default=160, help="of the pool")
@click.option("--pool", type=PATH, default=Path("pool"), help="folder of what the prior said")
@click.option("--steps", default=1600)
@click.option("--learning-rate", default=5e-4)
@click.option("--output", type=PATH, required=True, help="folder for the weights")
def main(
    data: Path, models: Path, beta: float, preset: str, weighting: str, times: str, count: int,
    pool: Path, steps: int, learning_rate: float, output: Path,
) -> None:  # fmt: skip
    """Ask the prior, train, save."""
    config = Config.model_validate(at_beta(preset, beta, weighting, times))
    prior = load_prior(models / "prior.safetensors")
    encoder = load_encoder(models / "encoder.safetensors")
    objective = EncoderObjective(
        config.objective, sde=prior.sde, prior=prior_score(prior.network, prior.sde), beta=beta,
        latent=encoder.header.latent,
    )  # fmt: skip
    settings = settings_of(config.selected.encoder.training, steps, learning_rate)
    image, seed = encoder.header.image, config.seed
    images = batches(
        load_split(data, "train", image).images, settings.batch, seed, flip=config.selected.flip
    )
    asked = [models / "prior.safetensors", data / "train_images.npy"]
    key = state_key([seed, settings.batch, times, config.selected.flip], asked)
    pooled = Pooled(objective, images, count, pool / key, seed)
    x = to_tensor(load_split(data, "test", image, SHOWN).images)
    draw = objective.draw(x, make_generator("cpu", seed, "validation"))
    said = objective.frozen(x, draw)

    def validate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            losses = objective.trained(module, x, draw, said)
        means = {f"test_{name}": values.mean().item() for name, values in losses.items()}
        click.echo(", ".join(f"{name} {value:.2f}" for name, value in means.items()))
        return means

    validate(encoder.network)
    trained = fit(
        encoder.network, pooled, pooled.batch, settings, seed=seed, name="pooled",
        record=lambda step, numbers: None, validate=validate, state=NoState(),
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    save_weights(output / "encoder.safetensors", trained, encoder.header)
    shutil.copyfile(models / "prior.safetensors", output / "prior.safetensors")


if __name__ == "__main__":
    main()
