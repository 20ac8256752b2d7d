"""One pass of ScoreVAE against a VAE, at one number of evaluations: L2 and sharpness by γ and τ.

    python benchmarks/one_pass.py --data data/cifar10_small --models FOLDER --vae FILE

No run is needed: a folder with the weights of a prior and an encoder, the weights of a VAE, and
what download wrote. What is drawn is kept in --kept, batch by batch; the same command goes on from
there. Writes a table (CSV): the VAE's row, then one for each pair of γ and τ; and, where it is
told a file, a picture of the first images.
"""

from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
from common import DOCS, write_rows
from torch import Tensor

from scorevae import VAE, ScoreVAE
from scorevae.config import Precision
from scorevae.data.arrays import load_split, to_tensor, to_unit_range
from scorevae.evaluation import figures
from scorevae.evaluation.metrics import l2_distances, peak_signal_to_noise_ratio, sharpness
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.vae import load_vae
from scorevae.runtime.state import BatchFolder

PATH = click.Path(path_type=Path)
BATCH, SHOWN = 20, 10


class Baseline(NamedTuple):
    """The VAE that passes are compared with, and what it makes of the test images."""

    vae: VAE
    originals: Tensor
    posterior: DiagonalGaussian
    images: Tensor
    distances: Tensor  # L2 of each image


def baseline(data: Path, weights: Path, images: int) -> Baseline:
    """Of the first test images."""
    trained = load_vae(weights)
    x = to_unit_range(to_tensor(load_split(data, "test", trained.header.image, images).images))
    vae = VAE(trained)
    posterior = vae.encode(x)
    blurred = vae.decode(posterior.mean)
    return Baseline(vae, x, posterior, blurred, l2_distances(x, blurred))


def judged(
    name: str, originals: Tensor, images: Tensor, posterior: DiagonalGaussian, against: Tensor
) -> dict[str, Any]:
    """A row: L2 and how far it is from another's, image by image, PSNR, sharpness, rate."""
    distances = l2_distances(originals, images)
    (l2, l2_se), (further, further_se) = mean(distances), mean(distances - against)
    row = {
        "system": name,
        "images": len(originals),
        "l2": f"{l2:.4f}",
        "l2_se": f"{l2_se:.4f}",
        "l2_over_vae": f"{further:.4f}",
        "l2_over_vae_se": f"{further_se:.4f}",
        "psnr": f"{peak_signal_to_noise_ratio(originals, images):.3f}",
        "sharpness": f"{sharpness(originals, images):.4f}",
        "rate_nats": f"{posterior.kl_to_standard_normal().mean().item():.1f}",
    }
    click.echo(row)
    return row


def show(rows: dict[str, Tensor], path: Path) -> None:
    """The first images of each row, as a PNG."""
    first = [(name, images[:SHOWN]) for name, images in rows.items()]
    figures.save(figures.image_rows(first, ""), path)


def mean(values: Tensor) -> tuple[float, float]:
    """And its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="prior.safetensors, encoder.safetensors")
@click.option("--vae", "vae_path", type=PATH, required=True, help="weights of the VAE")
@click.option("--images", default=1000, help="the first test images")
@click.option("--guidance", default="1.4", help="γ, comma-separated")
@click.option("--noise-scale", default="0.8", help="τ, comma-separated")
@click.option("--steps", default=20, help="network evaluations for one image")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="of what decodes")
@click.option("--kept", type=PATH, default=Path("one_pass"), help="folder of what was drawn")
@click.option("--picture", type=PATH, help="file of a picture (PNG)")
@click.option("--output", type=PATH, default=DOCS / "one_pass.csv")
def main(
    data: Path,
    models: Path,
    vae_path: Path,
    images: int,
    guidance: str,
    noise_scale: str,
    steps: int,
    precision: Precision | None,
    kept: Path,
    picture: Path | None,
    output: Path,
) -> None:
    """Draw, compare."""
    _, x, posterior, blurred, against = baseline(data, vae_path, images)
    shown = {"original": x}
    rows = [judged("VAE", x, blurred, posterior, against)]
    for gamma in map(float, guidance.split(",")):
        for tau in map(float, noise_scale.split(",")):
            model = ScoreVAE.load(models, batch=BATCH).with_noise_scale(tau)
            model = model.with_precision(precision) if precision else model
            model = model.with_sampling(model.sampling.model_copy(update={"steps": steps}))
            name, posterior = f"ScoreVAE γ {gamma:g} τ {tau:g}", model.encode(x)
            drawn = model.decode(
                posterior.mean,
                guidance=gamma,
                report=lambda done: click.echo(f"{done} images", err=True),
                kept=BatchFolder(kept).of(f"{images},{gamma:g},{tau:g},{steps},{precision}"),
            )
            rows.append(judged(name, x, drawn, posterior, against))
            write_rows(output, rows)
            shown[name] = drawn
    if picture:
        show(shown | {"VAE": blurred}, picture)


if __name__ == "__main__":
    main()
