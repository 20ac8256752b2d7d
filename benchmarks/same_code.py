"""ScoreVAE for the code of a VAE: the encoder learns what x_t tells of that VAE's z.

    python benchmarks/same_code.py --data data/cifar10_small --models FOLDER --vae FILE \
      --output FOLDER

Bayes' rule for scores holds for any q(z|x_0); p(z|x_t) = E[q(z|x_0)|x_t] (eq. 11) is learned by
regression alone, without a prior and without a gradient inside. With the VAE's q(z|x_0) the two
systems decode one and the same code, so that one_rate.py (--noise 0) compares them at one rate.
The encoder has the architecture of the VAE's, and starts from its weights. Writes it, and beside
it the prior of --models.
"""

import shutil
from pathlib import Path

import click
import torch
from accelerate import Accelerator
from common import ROOT, NoState
from torch import nn

from scorevae.config import TrainingConfig, load_config
from scorevae.data.arrays import load_split, to_tensor
from scorevae.data.batches import batches
from scorevae.networks.encoder import EncoderHeader, copy_trunk
from scorevae.networks.prior import load_prior
from scorevae.networks.vae import load_vae
from scorevae.networks.weights import save_weights
from scorevae.objectives import Objective, WarmStartObjective
from scorevae.randomness import global_seed, make_generator
from scorevae.runtime.arithmetic import chosen_precision
from scorevae.training.loop import fit

PATH = click.Path(path_type=Path)
SHOWN = 500  # test images


def settings_of(own: TrainingConfig, steps: int) -> TrainingConfig:
    """The preset's, longer; in bf16 where it says so and the CPU has it."""
    precision = chosen_precision(own.precision, torch.device("cpu"))
    changes = {"steps": steps, "precision": precision, "validate_every": max(1, steps // 10)}
    return own.model_copy(update=changes)


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="folder with prior.safetensors")
@click.option("--vae", "weights", type=PATH, required=True, help="weights of the VAE")
@click.option("--preset", default="cifar10_small", help="whose settings train the encoder")
@click.option("--steps", default=4000, help="of regression")
@click.option("--output", type=PATH, required=True, help="folder for the weights")
def main(data: Path, models: Path, weights: Path, preset: str, steps: int, output: Path) -> None:
    """Train, save."""
    config = load_config(ROOT / "params.yaml")
    chosen, vae = config.presets[preset], load_vae(weights)
    prior, own = load_prior(models / "prior.safetensors"), vae.header
    header = EncoderHeader(
        image=own.image, sde=prior.header.sde, latent=own.latent, network=own.network,
        log_determinant="full",
    )  # fmt: skip
    exact = chosen.encoder.warm_start.model_copy(update={"variance_scale": 1.0})
    regression: Objective = WarmStartObjective(exact, sde=prior.sde, teacher=vae.network.encoder)
    settings = settings_of(exact.training, steps)
    images = load_split(data, "train", header.image).images
    x = to_tensor(load_split(data, "test", header.image, SHOWN).images)

    def validate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            loss = regression(module, x, make_generator("cpu", 0, "validation"))["loss"].mean()
        click.echo(f"test loss {loss.item():.2f} nats")
        return {"test_loss": loss.item()}

    with global_seed(config.seed, "same_code"):
        encoder = header.build()
    copy_trunk(vae.network.encoder, encoder)
    trained = fit(
        encoder, regression,
        batches(images, settings.batch, config.seed, flip=chosen.flip),
        settings, seed=config.seed, name="same_code", record=lambda step, numbers: None,
        validate=validate, state=NoState(), accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    save_weights(output / "encoder.safetensors", trained, header)
    shutil.copyfile(models / "prior.safetensors", output / "prior.safetensors")


if __name__ == "__main__":
    main()
