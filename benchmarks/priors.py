"""Priors exchanged under one encoder, and a prior of diffusers' own making, as a table.

    python benchmarks/priors.py               # after dvc repro; writes docs/priors.csv
    python benchmarks/priors.py --equal-terms --output docs/priors_equal_terms.csv
    python benchmarks/priors.py --other PRIOR --images 100 --output FILE    # that exchange alone

Every row decodes the same test images. The encoder of the pipeline decodes with its own prior,
with one trained twice as long, and with one that diffusers' own training loop made (linear
schedule, 1000 indices drawn uniformly, as many steps and images as ours, a U-Net of the same
size), none of which it has seen. An encoder of its own is trained for the latter, and for ours
with t drawn uniformly as well. Each over several seeds of the sampler.

``--equal-terms`` asks what is left of the difference between our loop and diffusers' once ours
does as it does: t drawn uniformly, predicting the noise, or v where the other does, too, and the
network told the index of diffusers in place of the log-SNR. Two seeds of each training say how
much such a number varies.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from common import DOCS, ROOT, Trained, open_trained, write_rows
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import read_tree
from scorevae.data.arrays import to_tensor
from scorevae.evaluation.metrics import l2_distances, peak_signal_to_noise_ratio, sharpness

SEEDS = range(4)  # of the sampler
TRAININGS = range(2)  # seeds of a prior and its encoder
PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction"}  # ours, diffusers' word for it
PATH = click.Path(path_type=Path)


def untrained(trained: Trained, prediction: str, seed: int) -> tuple[UNet2DModel, DDPMScheduler]:
    """A DDPM of diffusers with a U-Net of the pipeline's size."""
    preset = trained.config.selected
    network, image = preset.prior.network, preset.data.image
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=image.size, in_channels=image.channels, out_channels=image.channels,
        layers_per_block=network.blocks, block_out_channels=tuple(network.channels),
        down_block_types=("DownBlock2D",) * len(network.channels),
        up_block_types=("UpBlock2D",) * len(network.channels),
        norm_num_groups=network.groups, add_attention=False,
    )  # fmt: skip
    return unet, DDPMScheduler(num_train_timesteps=1000, prediction_type=prediction)


def train_by_diffusers(trained: Trained, folder: Path, prediction: str, seed: int) -> None:
    """A DDPM as diffusers' documentation trains one, on the pipeline's training images."""
    settings = trained.config.selected.prior.training
    unet, scheduler = untrained(trained, prediction, seed)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    ema = EMAModel(unet.parameters(), decay=settings.ema)
    images = to_tensor(trained.train.images)
    for step in range(settings.steps):
        clean = images[torch.randint(len(images), (settings.batch,))]
        noise, index = torch.randn_like(clean), torch.randint(1000, (settings.batch,))
        predicted = unet(scheduler.add_noise(clean, noise, index), index).sample
        target = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, index)
        loss = torch.nn.functional.mse_loss(predicted, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        if step % 200 == 0:
            click.echo(f"diffusers' loop, step {step}: {loss.item():.4f}")
    ema.copy_to(unet.parameters())
    DDPMPipeline(unet, scheduler).save_pretrained(folder)


def stage(name: str, folder: Path, changes: dict[str, Any], *options: str | Path) -> None:
    """Run a stage's script in a folder, with the pipeline's parameters and some others."""
    tree: Any = read_tree(ROOT / "params.yaml")
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            place = place[parent]
        place[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, ROOT / "stages" / f"{name}.py", *options]
    subprocess.run([str(part) for part in command], cwd=folder, check=True)


def measure(label: str, trained: Trained, models: Path, prior: Path) -> dict[str, Any]:
    """L2, PSNR and sharpness of the test images: mean and standard deviation over seeds."""
    config = trained.config
    model = ScoreVAE.load(models, prior=prior, sampling=config.sampling)
    x, rows = trained.originals, []
    for seed in SEEDS:
        found = model.reconstruct(x, guidance=config.reconstruct.guidance, seed=seed)
        l2 = l2_distances(x, found).mean().item()
        rows.append([l2, peak_signal_to_noise_ratio(x, found), sharpness(x, found)])
    mean, spread = torch.tensor(rows).mean(0).tolist(), torch.tensor(rows).std(0).tolist()
    names = ("l2", "psnr", "sharpness")
    row = {"prior": label}
    for name, value, deviation in zip(names, mean, spread, strict=True):
        row |= {name: f"{value:.4f}", f"{name}_std": f"{deviation:.4f}"}
    click.echo(row)
    return row


def imported(folder: Path, trained: Trained, prediction: str, seed: int, encoder: bool) -> Path:
    """A prior of diffusers' loop, through its folder and train_prior."""
    ddpm = folder.with_suffix(".ddpm")
    train_by_diffusers(trained, ddpm, prediction, seed)
    changes = foreign(trained, ddpm, seed, steps=0)
    return with_prior(folder, trained, changes, encoder=encoder)


def ours_by_index(
    folder: Path, trained: Trained, prediction: str, seed: int, encoder: bool
) -> Path:
    """Their untrained network, imported with its indices, and trained by our loop."""
    ddpm = folder.with_suffix(".ddpm")
    unet, scheduler = untrained(trained, prediction, seed)
    DDPMPipeline(unet, scheduler).save_pretrained(ddpm)
    changes = foreign(trained, ddpm, seed, trained.config.selected.prior.training.steps)
    return with_prior(folder, trained, changes, encoder=encoder)


def foreign(trained: Trained, ddpm: Path, seed: int, steps: int) -> dict[str, Any]:
    """The settings that import it, and train it so many steps further."""
    key = f"presets.{trained.config.preset}.prior"
    return {
        "seed": seed,
        f"{key}.source": "pretrained",
        f"{key}.pretrained": {
            "format": "diffusers", "path": str(ddpm), "revision": None, "sha256": None
        },
        f"{key}.training.steps": steps,
        f"{key}.time": "uniform",
    }  # fmt: skip


def exchanged(trained: Trained, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of priors that the run's encoder never saw, and of encoders of their own."""
    steps = trained.config.selected.prior.training.steps
    key = f"presets.{trained.config.preset}.prior"
    longer = with_prior(folder / "longer", trained, {f"{key}.training.steps": 2 * steps})
    yield measure("ours, trained twice as long", trained, trained.models, longer)
    prior = imported(folder / "loop", trained, "epsilon", 0, encoder=True)
    yield measure("of diffusers' loop", trained, trained.models, prior)
    yield measure("of diffusers' loop, its own encoder", trained, prior.parent, prior)
    prior = with_prior(folder / "uniform", trained, {f"{key}.time": "uniform"}, encoder=True)
    label = "ours, t uniform as in that loop, its own encoder"
    yield measure(label, trained, prior.parent, prior)


def on_equal_terms(trained: Trained, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of both loops with the same prediction and distribution of t."""
    key = f"presets.{trained.config.preset}.prior"
    for (output, prediction), seed in product(PREDICTIONS.items(), TRAININGS):
        label, encoder = f"{output}, seed {seed}", (output, seed) == ("noise", 0)
        ours = {"seed": seed, f"{key}.time": "uniform", f"{key}.network.output": output}
        loops = {
            "diffusers' loop": partial(imported, prediction=prediction, seed=seed),
            "ours, told the index": partial(ours_by_index, prediction=prediction, seed=seed),
            "ours": partial(with_prior, changes=ours),
        }
        for loop, train in loops.items():
            prior = train(folder / f"{loop} {label}", trained, encoder=encoder)
            yield measure(f"{loop}: {label}", trained, trained.models, prior)
            if encoder:
                yield measure(f"{loop}: {label}, its own encoder", trained, prior.parent, prior)


def with_prior(
    folder: Path, trained: Trained, changes: dict[str, Any], *, encoder: bool = False
) -> Path:
    """A prior trained, or imported, with other parameters; and an encoder for it."""
    folder.mkdir()
    data, prior = ROOT / "data" / trained.config.preset, folder / "prior.safetensors"
    stage(
        "train_prior", folder, changes,
        "--data", data, "--output", prior, "--curve", folder / "prior.csv",
    )  # fmt: skip
    if encoder:
        stage(
            "train_encoder", folder, changes, "--data", data, "--prior", prior,
            "--vae", trained.models / "vae.safetensors",
            "--output", folder / "encoder.safetensors", "--curve", folder / "encoder.csv",
        )  # fmt: skip
    return prior


@click.command(help=__doc__)
@click.option("--other", type=PATH, help="weights of a prior, in place of those trained here")
@click.option("--equal-terms", is_flag=True, help="both loops, with the same settings")
@click.option("--images", type=int, help="so many of the test images; default: all")
@click.option("--output", type=PATH, default=DOCS / "priors.csv")
def main(other: Path | None, equal_terms: bool, images: int | None, output: Path) -> None:
    """Exchange, measure."""
    trained = open_trained()
    trained = trained._replace(originals=trained.originals[:images])
    own = trained.models / "prior.safetensors"
    rows = [measure("the encoder's own", trained, trained.models, own)]
    with tempfile.TemporaryDirectory() as folder:
        if other is not None:
            further = iter([measure(other.parent.name, trained, trained.models, other)])
        else:
            study = on_equal_terms if equal_terms else exchanged
            further = study(trained, Path(folder))
        for row in further:
            rows.append(row)
            write_rows(output, rows)


if __name__ == "__main__":
    main()
