"""Peak memory of download and of training against the number of images.

    python benchmarks/memory.py               # 20 minutes; prints a table

Writes a synthetic CelebA of small size and one of the full 202,599 faces (JPEG, 178×218, in the
official layout) into a temporary folder, reads both with the source `celeba64`, and trains the
prior of `faces_small` for a few steps on the result. Each measurement is a process of its own.
Anonymous memory is what a process holds; mapped pages of the arrays, which the system takes back
whenever it needs them, are not in it.
"""

import io
import multiprocessing
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
import torch
from common import ROOT, NoState
from PIL import Image

from scorevae.config import load_config

TOTAL = 202_599  # of CelebA


def write_celeba(folder: Path, count: int) -> None:
    """Random smooth pictures in CelebA's layout; a hundred different ones, repeated."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(100):
        coarse = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((178, 218)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(names):
            archive.writestr(f"img_align_celeba/{name}", pictures[number % 100])
    parts = ("0", "0", "0", "0", "0", "0", "0", "0", "1", "2")
    lines = [f"{name} {parts[number % 10]}\n" for number, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    values = " ".join(["-1", "1"] * 20)
    titles = " ".join(f"attribute_{number}" for number in range(40))
    rows = "".join(f"{name} {values}\n" for name in names)
    (folder / "list_attr_celeba.txt").write_text(f"{count}\n{titles}\n{rows}")


def anonymous_megabytes() -> float:
    """Anonymous resident memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise click.ClickException("/proc/self/status has no RssAnon: this benchmark needs Linux")


def download(source: Path, target: Path) -> None:
    """The source celeba64, with the checksums of the synthetic files."""
    from torchvision.datasets.utils import calculate_md5

    from scorevae.data.sources.celeba import read_celeba
    from scorevae.data.sources.writer import DatasetWriter

    settings = load_config(ROOT / "params.yaml").presets["celeba64"].data
    target.mkdir()
    md5 = {path.name: calculate_md5(path) for path in source.iterdir()}
    read_celeba(settings, source, DatasetWriter(target, settings.image, "synthetic"), md5=md5)


def train(source: Path, target: Path) -> None:
    """Twenty steps of a prior on what :func:`download` wrote."""
    from accelerate import Accelerator

    from scorevae.data.arrays import load_split
    from scorevae.data.batches import batches
    from scorevae.networks.prior import PriorUNet
    from scorevae.objectives import PriorObjective
    from scorevae.sde import build_sde
    from scorevae.training.loop import fit

    del source
    config = load_config(ROOT / "params.yaml")
    image, settings = config.presets["celeba64"].data.image, config.presets["faces_small"].prior
    images = load_split(target, "train", image).images
    sde = build_sde(config.sde)
    training = settings.training.model_copy(update={"steps": 20, "batch": 32})
    fit(
        PriorUNet(image, settings.network, sde), PriorObjective(sde=sde, time=settings.time),
        batches(images, training.batch, 0, flip=True), training, seed=0, name="memory",
        record=lambda step, numbers: None, validate=lambda module: {}, state=NoState(),
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip


def _measured(
    work: Callable[[Path, Path], None], source: Path, target: Path, answer: Connection
) -> None:
    torch.set_num_threads(1)
    peak, stop = [anonymous_megabytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], anonymous_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    work(source, target)
    stop.set()
    watcher.join()
    answer.send((peak[0], time.perf_counter() - started))


def measure(work: Callable[[Path, Path], None], source: Path, target: Path) -> tuple[float, float]:
    """Peak anonymous megabytes and seconds of a function in a fresh process."""
    receive, send = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_measured, args=(work, source, target, send))
    process.start()
    answer: tuple[float, float] = receive.recv()
    process.join()
    return answer


@click.command(help=__doc__)
@click.option("--counts", default=f"2000,20000,{TOTAL}", help="comma-separated numbers of images")
def main(counts: str) -> None:
    """Print the table."""
    click.echo("| images | stored arrays, MB | download, MB | seconds | training, MB |")
    click.echo("|---|---|---|---|---|")
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "source", Path(folder) / "target"
            write_celeba(source, count)
            download_mb, elapsed = measure(download, source, target)
            stored = sum(path.stat().st_size for path in target.iterdir()) / 2**20
            training_mb, _ = measure(train, source, target)
            click.echo(
                f"| {count:,} | {stored:,.0f} | {download_mb:,.0f} | {elapsed:,.0f} | "
                f"{training_mb:,.0f} |"
            )


if __name__ == "__main__":
    main()
