"""A VAE and ScoreVAE at one β, beside a prior that was trained before: nats, L2, sharpness.

    python benchmarks/one_beta.py --data data/cifar10_small --prior FILE --beta 0.004 --minutes 6

A point of the plane of rate and distortion where a prior is at hand; run it for every β. The VAE,
the warm start and the objective share the minutes, as a rehearsal of a few steps says what each
costs. Both systems decode one sample of q(z|x), which is what their rates price, and the mean of q
besides. Weights, images (images.safetensors) and a table (rows.csv) go to the output.
"""

import copy
import time
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from common import NoState, at_beta, write_rows
from one_pass import judged
from one_rate import rates, sample
from safetensors.torch import save_file
from torch import Tensor, nn

from scorevae import VAE, ScoreVAE
from scorevae.config import Config, Precision, TrainingConfig
from scorevae.data.arrays import Split, load_split, to_tensor, to_unit_range
from scorevae.data.batches import batches
from scorevae.evaluation.metrics import l2_distances
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder, copy_trunk
from scorevae.networks.prior import Prior, load_prior
from scorevae.networks.vae import VAE as VAENetwork
from scorevae.networks.vae import TrainedVAE, VAEHeader
from scorevae.networks.weights import save_weights
from scorevae.objectives import EncoderObjective, Objective, VAEObjective, WarmStartObjective
from scorevae.randomness import global_seed, make_generator
from scorevae.score import prior_score
from scorevae.training.loop import fit

PATH = click.Path(path_type=Path)
SHARES = {"vae": 0.3, "warm_start": 0.1, "objective": 0.6}  # of the minutes
REHEARSED, WARM_UP = 20, 5  # steps
VALIDATED, AGGREGATED = 500, 5000  # test images; training images by whose codes rates are scaled


class Trainings:
    """What the three trainings share, and how finished each is."""

    def __init__(self, config: Config, train: Split, test: Tensor, minutes: float) -> None:
        self.config, self.train, self.minutes = config, train, minutes
        self.accelerator = Accelerator()
        self.test = test[:VALIDATED].to(self.accelerator.device)
        self.facts: dict[str, Any] = {}

    def build(self, header: VAEHeader | EncoderHeader) -> nn.Module:
        """A network with the weights of the seed."""
        with global_seed(self.config.seed, header.kind, "weights"):
            return header.build().to(self.accelerator.device)

    def _fit(
        self, module: nn.Module, objective: Objective, settings: TrainingConfig, name: str
    ) -> nn.Module:
        seed, device = self.config.seed, self.accelerator.device
        flip = self.config.selected.flip

        def validate(module: nn.Module) -> dict[str, float]:
            with torch.no_grad():
                losses = objective(module, self.test, make_generator(device, seed, "validation"))
            return {"test_loss": losses["loss"].mean().item()}

        def record(step: int, numbers: dict[str, float]) -> None:
            if "falling" in numbers:
                self.facts[f"{name}_falling"] = f"{numbers['falling']:.2f}"
            told = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if k != "timestamp")
            click.echo(f"{name} {step}: {told}")

        return fit(
            module, objective,
            batches(self.train.images, settings.batch, seed, flip=flip, device=device),
            settings, seed=seed, name=name, record=record, validate=validate, state=NoState(),
            accelerator=self.accelerator,
        )  # fmt: skip

    def __call__(
        self, module: nn.Module, objective: Objective, settings: TrainingConfig, name: str
    ) -> nn.Module:
        """Train for this training's share of the minutes; its averaged weights."""
        rehearsed = {"validate_every": 10 * REHEARSED, "log_every": REHEARSED}
        for steps in (WARM_UP, REHEARSED):
            started = time.perf_counter()
            short = settings.model_copy(update={"steps": steps, **rehearsed})
            self._fit(copy.deepcopy(module), objective, short, f"{name} (rehearsal)")
        step = (time.perf_counter() - started) / REHEARSED
        steps = max(20, int(60 * self.minutes * SHARES[name] / step))
        self.facts[f"{name}_steps"] = steps
        every = max(1, steps // 10)
        changes = {"warmup": steps // 20, "log_every": every, "validate_every": every}
        planned = settings.model_copy(update={"steps": steps, **changes})
        return self._fit(module, objective, planned, name)


def trained(
    config: Config, prior: Prior, run: Trainings, batch: int, learning_rate: float
) -> tuple[TrainedVAE, TrainedEncoder]:
    """The VAE, and the encoder that starts from its."""
    preset, sde = config.selected, prior.sde
    network, latent = preset.encoder.network, preset.latent
    image = prior.header.image

    def settings(own: TrainingConfig, **changes: Any) -> TrainingConfig:  # noqa: ANN401
        return own.model_copy(update={"batch": batch, "schedule": "cosine", **changes})

    vae_header = VAEHeader(image=image, latent=latent, network=network)
    vae = run(
        run.build(vae_header),
        VAEObjective(latent=latent, beta=config.beta, error=preset.vae.error),
        settings(preset.vae.training), "vae",
    )  # fmt: skip
    assert isinstance(vae, VAENetwork)
    header = EncoderHeader(
        image=image, sde=prior.header.sde, latent=latent, network=network,
        log_determinant=config.objective.log_determinant,
    )  # fmt: skip
    encoder, warm = run.build(header), preset.encoder.warm_start
    copy_trunk(vae.encoder, encoder)
    regression = WarmStartObjective(warm, sde=sde, teacher=vae.encoder)
    encoder = run(encoder, regression, settings(warm.training), "warm_start")
    score = prior_score(prior.network.to(run.accelerator.device), sde)
    objective = EncoderObjective(
        config.objective, sde=sde, prior=score, beta=config.beta, latent=latent
    )
    own = settings(preset.encoder.training, learning_rate=learning_rate)
    encoder = run(encoder, objective, own, "objective")
    return TrainedVAE(vae, vae_header), TrainedEncoder(encoder, header)


def compared(
    vae: VAE, model: ScoreVAE, x: Tensor, known: Tensor, draws: int, drawn: int
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The table, and what was drawn: of all images once, of the first ``drawn`` many times."""
    rows, images = [], {"x": x}
    posterior, own = vae.encode(x), model.encode(x)
    blurred, z = vae.decode(sample(posterior)), sample(own)
    against = l2_distances(x, blurred)
    nats = {vae: rates(posterior, vae.encode(known)), model: rates(own, model.encode(known))}

    def add(name: str, system: VAE | ScoreVAE, found: Tensor) -> None:
        of, n = posterior if system is vae else own, len(found)
        of = type(of)(of.mean[:n], of.log_variance[:n])
        rows.append(judged(name, x[:n], found, of, against[:n]) | nats[system])
        images[name] = found

    add("VAE, a sample of q", vae, blurred)
    add("VAE, the mean of q", vae, vae.decode(posterior.mean))
    for tau in (0.0, 0.8):
        scaled = model.with_noise_scale(tau)
        add(f"ScoreVAE, τ {tau:g}", model, scaled.decode(z))
        add(f"ScoreVAE, the mean of q, τ {tau:g}", model, scaled.decode(own.mean))
    several = model.decode_draws(z[:drawn], draws=draws)
    add("ScoreVAE, one draw", model, several[:, 0])
    add(f"ScoreVAE, mean of {draws} draws", model, several.mean(dim=1))
    add("VAE, those images", vae, blurred[:drawn])
    return rows, images


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--prior", "prior_path", type=PATH, required=True, help="weights of the prior")
@click.option("--beta", type=float, required=True, help="of both systems")
@click.option("--preset", default="cifar10_small", help="whose settings train both")
@click.option("--channels", default="", help="of the encoder, comma-separated; the preset's")
@click.option("--blocks", default=0, help="of the encoder in each level; 0: the preset's")
@click.option("--weighting", default="simple", help="simple (σ²) | likelihood")
@click.option("--times", default="uniform", help="uniform | log_snr")
@click.option("--variance-scale", default=1.0, help="of the warm start")
@click.option("--learning-rate", default=1e-3, help="of the objective")
@click.option("--batch", default=128, help="images a step")
@click.option("--minutes", default=6.0, help="for the three trainings together")
@click.option("--images", default=300, help="the first test images")
@click.option("--draws", default=16, help="images for one z")
@click.option("--drawn", default=100, help="test images that have so many")
@click.option("--output", type=PATH, default=Path("one_beta"))
def main(
    data: Path, prior_path: Path, beta: float, preset: str, channels: str, blocks: int,
    weighting: str, times: str, variance_scale: float, learning_rate: float, batch: int,
    minutes: float, images: int, draws: int, drawn: int, output: Path,
) -> None:  # fmt: skip
    """Train, draw, compare."""
    tree = at_beta(preset, beta, weighting, times)
    network = tree["presets"][preset]["encoder"]["network"]
    network |= {"channels": [int(c) for c in channels.split(",")]} if channels else {}
    network |= {"blocks": blocks} if blocks else {}
    tree["presets"][preset]["encoder"]["warm_start"]["variance_scale"] = variance_scale
    config, prior = Config.model_validate(tree), load_prior(prior_path)
    image = prior.header.image
    test = to_tensor(load_split(data, "test", image, max(images, VALIDATED)).images)
    train = load_split(data, "train", image)
    run = Trainings(config, train, test, minutes)
    vae, encoder = trained(config, prior, run, batch, learning_rate)
    output.mkdir(parents=True, exist_ok=True)
    save_weights(output / "vae.safetensors", *vae)
    save_weights(output / "encoder.safetensors", *encoder)
    device = run.accelerator.device
    precision: Precision = "bf16" if device.type == "cuda" else "float32"
    model = ScoreVAE(prior, encoder, batch=500).with_precision(precision)
    x, known = to_unit_range(test[:images]), to_unit_range(to_tensor(train.images[:AGGREGATED]))
    rows, found = compared(VAE(vae, batch=500), model, x, known, draws, drawn)
    facts = {"beta": f"{beta:g}", **run.facts}
    write_rows(output / "rows.csv", [facts | row for row in rows])
    stored = {name: (image.clamp(0, 1) * 255).round().byte() for name, image in found.items()}
    save_file(stored, output / "images.safetensors")


if __name__ == "__main__":
    main()
