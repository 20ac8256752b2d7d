"""Images per second of the input pipeline alone, against a step of training.

    python benchmarks/loader.py [PRESET ...]  # nothing need be trained; prints a table

The images are random, as many as fit into the given size, memory-mapped from a temporary file.
Ratio: how many times faster the loader is than the step that it feeds. It is the bottleneck
where that is below one.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from common import ROOT

from scorevae.autoencoders.devices import default_device
from scorevae.config import PresetConfig, load_config
from scorevae.data.arrays import load_split
from scorevae.data.batches import Batches, batches
from scorevae.data.sources.writer import DatasetWriter
from scorevae.networks.prior import PriorUNet
from scorevae.objectives import PriorObjective
from scorevae.sde import build_sde
from scorevae.training.step import LossModule

CHUNK = 1000


def seconds(call: Callable[[int], object], count: int) -> float:
    """Mean seconds of a call, the first one left out."""
    call(0)
    started = time.perf_counter()
    for step in range(1, count + 1):
        call(step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def write_random(folder: Path, preset: PresetConfig, megabytes: int) -> None:
    """A prepared data set of random pixels."""
    writer = DatasetWriter(folder, preset.data.image, "random")
    count = max(preset.prior.training.batch, megabytes * 2**20 // int(np.prod(writer.row_shape)))
    rng = np.random.default_rng(0)
    sizes = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    shapes = ((size, *writer.row_shape) for size in sizes)
    writer.images("train", (rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes))


def training_step(preset: PresetConfig, batch: Batches) -> Callable[[int], object]:
    """Forward and backward of the prior, the step that needs images most often."""
    sde, settings = build_sde(load_config(ROOT / "params.yaml").sde), preset.prior
    device = default_device()
    network = PriorUNet(preset.data.image, settings.network, sde).to(device)
    objective = PriorObjective(sde=sde, time=settings.time)
    bf16 = settings.training.precision == "bf16"
    module = LossModule(network, objective, bf16=bf16, compiled=False)
    generator = torch.Generator(device).manual_seed(0)

    def step(number: int) -> None:
        x_0 = batch(number)
        module(x_0, objective.draw(x_0, generator))["loss"].backward()

    return step


@click.command(help=__doc__)
@click.argument("presets", nargs=-1)
@click.option("--megabytes", default=200, help="size of the training array")
@click.option("--steps", default=3, help="training steps that are timed")
def main(presets: tuple[str, ...], megabytes: int, steps: int) -> None:
    """Print one row for each preset and way to load."""
    config = load_config(ROOT / "params.yaml")
    click.echo("| preset | workers | loader, images/s | step, images/s | ratio |")
    click.echo("|---|---|---|---|---|")
    for name in presets or ("digits", "cifar10_small", "faces_small"):
        preset = config.presets[name]
        size = preset.prior.training.batch
        with tempfile.TemporaryDirectory() as folder:
            write_random(Path(folder), preset, megabytes)
            images = load_split(Path(folder), "train", preset.data.image).images
            for workers in (0, 2):
                batch = batches(
                    images, size, 0, flip=True, device=default_device(), workers=workers
                )
                loader = size / seconds(batch, 200)
                step = size / seconds(training_step(preset, batch), steps)
                ratio = loader / step
                click.echo(f"| {name} | {workers} | {loader:,.0f} | {step:,.0f} | {ratio:,.0f} |")


if __name__ == "__main__":
    main()
