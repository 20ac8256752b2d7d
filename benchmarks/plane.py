"""Rate, distortion and perception over β, of VAEs and of encoders beside a prior.

    python benchmarks/plane.py --data data/cifar10_small \
      --vae 0.003=FILE --vae 0.01=FILE --encoder 0.003=FOLDER --encoder 0.01=FOLDER

No run is needed: the weights of each VAE, and for each encoder a folder with its weights and the
prior's (pooled.py writes them). Every system decodes one sample of q(z|x), which is what its nats
price. ScoreVAE draws as the model has it; with γ, so that draws are as sharp as the data, and
takes the mean of some of those; and is near in one pass by another γ and τ. What is drawn is kept
in --kept; the same command goes on from there. Writes a table (CSV), and a figure (PNG) beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from common import DOCS, write_rows
from one_pass import BATCH, judged
from one_rate import AGGREGATED, drawn, rates, sample

from scorevae import VAE, ScoreVAE
from scorevae.autoencoders.system import System
from scorevae.data.arrays import Split, load_split, to_tensor, to_unit_range
from scorevae.evaluation import figures
from scorevae.evaluation.reference import Eigenvalues, eigenvalues, gaussian_curve, principal_floor
from scorevae.networks.vae import load_vae
from scorevae.runtime.state import BatchFolder
from scorevae.shapes import Images

PATH = click.Path(path_type=Path)


class Manner(NamedTuple):
    """How one line of the plane decodes."""

    guidance: float  # γ
    noise_scale: float  # τ

    def __str__(self) -> str:
        return f"γ {self.guidance:g}, τ {self.noise_scale:g}"


class AtBeta(NamedTuple):
    """Weights, and the β they were trained at."""

    beta: float
    path: Path

    @classmethod
    def read(cls, given: Sequence[str], option: str) -> list["AtBeta"]:
        """Of BETA=PATH, by rising β."""
        pairs = [text.partition("=") for text in given]
        try:
            return sorted(cls(float(beta), Path(path)) for beta, _, path in pairs)
        except ValueError:
            message = f"got {', '.join(given)}; give BETA=PATH"
            raise click.BadParameter(message, param_hint=option) from None


class Judge:
    """Decodes one sample of q(z|x) of each image, and writes what comes of it."""

    def __init__(self, train: Split, test: Split, output: Path) -> None:
        self.known = to_unit_range(to_tensor(train.images[:AGGREGATED]))
        self.x, self.output = to_unit_range(to_tensor(test.images)), output
        self.rows: list[dict[str, Any]] = []

    def add(self, beta: float, system: System, found: dict[str, Images]) -> None:
        """A row for each way to decode."""
        own, none = system.encode(self.x), torch.zeros(len(self.x))
        nats = rates(own, system.encode(self.known))
        for name, images in found.items():
            row = judged(name, self.x, images, own, none)
            known = {key: value for key, value in row.items() if "over" not in key}
            self.rows.append({"beta": f"{beta:g}"} | known | nats)
        write_rows(self.output.with_suffix(".csv"), self.rows)


def scorevae_images(
    model: ScoreVAE, x: Images, kept: BatchFolder, sharp: float, near: Manner, draws: int
) -> dict[str, Images]:
    """A draw of the model, one by γ and the mean of several such, and what is near in one pass."""
    z = sample(model.encode(x))

    def pass_of(manner: Manner, seed: int = 0) -> Images:
        own = model.with_sampling(model.sampling)
        own.guidance = manner.guidance
        return drawn(own, z, kept, f"{len(x)},{manner.guidance:g}", manner.noise_scale, seed)

    as_it_is, sharper = Manner(1.0, 1.0), Manner(sharp, 1.0)
    several = torch.stack([pass_of(sharper, seed) for seed in range(draws)])
    return {
        f"ScoreVAE, {as_it_is}": pass_of(as_it_is),
        f"ScoreVAE, {sharper}": several[0],
        f"ScoreVAE, mean of {draws} of those": several.mean(dim=0),
        f"ScoreVAE, {near}": pass_of(near),
    }


def figure(rows: Sequence[dict[str, Any]], variances: Eigenvalues, latent: int) -> figures.Figure:
    """L2 and sharpness against rate, sharpness against L2; β at the points."""
    plane, axes = figures.lines(3)
    names = list(dict.fromkeys(row["system"] for row in rows))
    for index, name in enumerate(names):
        own = [row for row in rows if row["system"] == name]
        beta, l2, sharp, nats = (
            [float(row[key]) for row in own] for key in ("beta", "l2", "sharpness", "rate_nats")
        )
        for axis, x, y in ((axes[0], nats, l2), (axes[1], nats, sharp), (axes[2], l2, sharp)):
            axis.plot(x, y, ".-", label=name, color=f"C{index}")
            for a, b, known in zip(x, y, beta, strict=True):
                axis.annotate(f"{known:g}", (a, b), (3, 3), textcoords="offset points", fontsize=6)
    gaussian = gaussian_curve(variances)
    spanned = [float(row["rate_nats"]) for row in rows]
    inside = (gaussian.rate_nats <= max(spanned)) & (gaussian.rate_nats >= min(spanned))
    axes[0].plot(*(part[inside] for part in gaussian), "k-", linewidth=0.7, label="Gaussian R(D)")
    floor = principal_floor(variances, latent)
    axes[0].axhline(floor, color="grey", linewidth=0.7, label=f"PCA of {latent}")
    axes[0].set(xlabel="rate, nats", ylabel="L2", yscale="log")
    figures.logarithmic(axes[0].yaxis)
    axes[1].set(xlabel="rate, nats", ylabel="sharpness")
    axes[2].set(xlabel="L2", ylabel="sharpness")
    axes[0].legend(fontsize=7)
    return plane


@click.command(help=__doc__)
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--vae", "vaes", multiple=True, required=True, help="BETA=FILE of weights")
@click.option("--encoder", "encoders", multiple=True, required=True, help="BETA=FOLDER")
@click.option("--images", default=100, help="the first test images")
@click.option("--draws", default=8, help="for the mean")
@click.option("--guidance", default=1.4, help="γ of the draws")
@click.option("--near", nargs=2, type=float, default=(2.0, 0.5), help="γ and τ of one near pass")
@click.option("--kept", type=PATH, default=Path("plane"), help="folder of what was drawn")
@click.option("--output", type=PATH, default=DOCS / "cifar10_betas.csv")
def main(
    data: Path, vaes: tuple[str, ...], encoders: tuple[str, ...], images: int, draws: int,
    guidance: float, near: tuple[float, float], kept: Path, output: Path,
) -> None:  # fmt: skip
    """Draw, judge, show."""
    image = load_vae(AtBeta.read(vaes, "--vae")[0].path).header.image
    train = load_split(data, "train", image)
    judge = Judge(train, load_split(data, "test", image, images), output)
    for beta, path in AtBeta.read(vaes, "--vae"):
        vae = VAE(load_vae(path))
        judge.add(beta, vae, {"VAE": vae.decode(sample(vae.encode(judge.x)))})
    for beta, path in AtBeta.read(encoders, "--encoder"):
        model = ScoreVAE.load(path, batch=BATCH, guidance=1.0).with_precision("bf16")
        own = BatchFolder(kept / f"{beta:g}")
        found = scorevae_images(model, judge.x, own, guidance, Manner(*near), draws)
        judge.add(beta, model, found)
    plane = figure(judge.rows, eigenvalues(train.images), vae.latent)
    figures.save(plane, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
