"""ScoreVAE with a coarser code against a VAE, at one rate: distance and sharpness by s and τ.

    python benchmarks/one_rate.py --data data/cifar10_small --models FOLDER --vae FILE

No run is needed: a folder with the weights of a prior and an encoder, the weights of a VAE, and
what download wrote. The code is z' = z + s ε. Both systems decode one sample of q, which is what
their rates price; the VAE's images from the mean of q stand beside, as a code of no finite rate.
Differences are from the VAE's images of a sample. With --draws, several images for each z'
besides, as the model has them (τ = 1), and their mean. With --corrector all of it by ScoreVAE+.
What is drawn is kept in --kept, batch by batch; the same command goes on from there. Writes a
table (CSV), and where it is told a file a picture of the first images.

Rates are KL(q(z'|x) ‖ N(0, I)), and besides, for either system, that of z' once it is shifted and
scaled to mean 0 and variance 1 over the images (scaled_nats), and once it is whitened
(whitened_nats): the same code in other units, which decoding would have to undo.
"""

from pathlib import Path
from typing import Any, get_args

import click
import torch
from common import DOCS, write_rows
from one_pass import BATCH, baseline, judged, show
from torch import Tensor

from scorevae import ScoreVAE, ScoreVAEPlus
from scorevae.autoencoders.system import System
from scorevae.config import Precision
from scorevae.data.arrays import load_split, to_tensor, to_unit_range
from scorevae.evaluation.metrics import l2_distances
from scorevae.gaussian import DiagonalGaussian
from scorevae.randomness import make_generator
from scorevae.runtime.state import BatchFolder

PATH = click.Path(path_type=Path)
AGGREGATED = 5000  # training images over which codes are scaled and whitened


def rates(posterior: DiagonalGaussian, others: DiagonalGaussian) -> dict[str, str]:
    """KL of the codes from the Gaussian of others' codes: of each latent apart, and of all."""
    mean, log_variance = (part.double() for part in posterior)
    codes, noise = others.mean.double(), others.log_variance.double().exp().mean(dim=0)
    centre = codes.mean(dim=0)
    whole = torch.cov(codes.T, correction=0) + noise.diag()
    inverse, variance = torch.linalg.inv(whole), log_variance.exp()

    def kl(inverse: Tensor, log_determinant: Tensor) -> float:
        away = mean - centre
        quadratic = ((away @ inverse) * away).sum(1) + (variance * inverse.diag()).sum(1)
        return (
            0.5 * (quadratic - mean.shape[1] + log_determinant - log_variance.sum(1)).mean().item()
        )

    scaled = kl((1 / whole.diag()).diag(), whole.diag().log().sum())
    whitened = kl(inverse, torch.logdet(whole))
    return {"scaled_nats": f"{scaled:.1f}", "whitened_nats": f"{whitened:.1f}"}


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="prior.safetensors, encoder.safetensors")
@click.option("--vae", "vae_path", type=PATH, required=True, help="weights of the VAE")
@click.option("--images", default=100, help="the first test images")
@click.option("--noise", default="0,0.02,0.05,0.1,0.17", help="s, comma-separated; 0: z as it is")
@click.option("--noise-scale", default="0.8", help="τ, comma-separated; empty: none")
@click.option("--guidance", default=1.0, help="γ")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="of what decodes")
@click.option("--corrector", is_flag=True, help="decode by ScoreVAE+, of the same folder")
@click.option("--draws", default=0, help="images for each z'; 0: none")
@click.option("--kept", type=PATH, default=Path("one_rate"), help="folder of what was drawn")
@click.option("--picture", type=PATH, help="file of a picture (PNG)")
@click.option("--output", type=PATH, default=DOCS / "one_rate.csv")
def main(
    data: Path,
    models: Path,
    vae_path: Path,
    images: int,
    noise: str,
    noise_scale: str,
    guidance: float,
    precision: Precision | None,
    corrector: bool,
    draws: int,
    kept: Path,
    picture: Path | None,
    output: Path,
) -> None:
    """Draw, compare."""
    vae, x, posterior, from_mean, _ = baseline(data, vae_path, images)
    blurred = vae.decode(sample(posterior))
    against = l2_distances(x, blurred)
    known = to_unit_range(to_tensor(load_split(data, "train", vae.image, AGGREGATED).images))
    rows: list[dict[str, Any]] = []
    shown = {"original": x}

    def add(found: dict[str, Tensor], own: DiagonalGaussian, model: System) -> None:
        nats = rates(own, model.encode(known))
        for system, decoded in found.items():
            rows.append(judged(system, x, decoded, own, against) | nats)
        write_rows(output, rows)
        shown.update(found)

    add({"VAE, a sample of q": blurred, "VAE, the mean of q": from_mean}, posterior, vae)
    kind = ScoreVAEPlus if corrector else ScoreVAE
    plain = kind.load(models, batch=BATCH, guidance=guidance)
    plain = plain.with_precision(precision) if precision else plain
    for s in map(float, noise.split(",")):
        model = plain.with_coarser_code(s) if s else plain
        own = model.encode(x)
        name = "ScoreVAE+" if corrector else "ScoreVAE"
        name += (f" s {s:g}" if s else "") + (f" γ {guidance:g}" if guidance != 1 else "")
        manner = f"{images},{s:g},{guidance:g},{precision},{corrector}"
        of_s = model, sample(own), BatchFolder(kept), manner
        found = {f"{name}, τ {t}": drawn(*of_s, float(t), 0) for t in noise_scale.split(",") if t}
        if draws:
            several = torch.stack([drawn(*of_s, 1.0, seed) for seed in range(draws)])
            found[f"{name}, one draw"] = several[0]
            if draws > 1:
                found[f"{name}, mean of {draws} draws"] = several.mean(dim=0)
        add(found, own, model)
    if picture:
        show(shown, picture)


def sample(posterior: DiagonalGaussian) -> Tensor:
    """One code of each image."""
    return posterior.sample(make_generator("cpu", 0, "one_rate"))


def drawn(
    model: ScoreVAE, z: Tensor, kept: BatchFolder, name: str, tau: float, seed: int
) -> Tensor:
    """One pass, batch by batch; what is kept under that name, τ and seed is not drawn again."""
    key = f"{name},{tau:g}" + (f",{seed}" if seed else "")
    return model.with_noise_scale(tau).decode(
        z,
        seed=seed,
        report=lambda done: click.echo(f"{key}: {done} images", err=True),
        kept=kept.of(key),
    )


if __name__ == "__main__":
    main()
