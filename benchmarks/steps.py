"""Milliseconds and images/s of every step and of decoding, beside the published code's.

    python benchmarks/steps.py                            # two minutes, on whatever there is
    python benchmarks/steps.py --beside 8 --minutes 6    # compiled eight at once
    python benchmarks/steps.py --preset digits --batch 16 --minutes 1     # a rehearsal on a CPU

Random weights and images, nothing need be trained. Each step as written and compiled, in float32
and bf16, the most telling ones first; each row is printed as it is measured, and what the minutes
do not reach is named. Compiling counts, and has a column: it is the first step, and takes longer
beside others. On a CPU steps are compiled with SCOREVAE_COMPILE=1 alone, as in a training, and
decoding is compiled where they are.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import torch
from accelerate import Accelerator
from common import ROOT
from torch import nn

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import Config, Precision, load_config
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder
from scorevae.networks.prior import Prior, PriorHeader
from scorevae.networks.vae import VAEHeader
from scorevae.objectives import EncoderObjective, PriorObjective, VAEObjective, WarmStartObjective
from scorevae.randomness import make_generator
from scorevae.runtime.arithmetic import arithmetic
from scorevae.runtime.compiled import compiling
from scorevae.score import prior_score
from scorevae.training.step import Stepper

Measure = Callable[[], tuple[float, float]]
WARM_UP, SECONDS = 2, 3.0  # steps before, and of, a measurement
PUBLISHED = {  # images/s of the published code on an H200, TF32 convolutions, batch 128
    "objective": "962",
    "prior": "970",
    "decoding": "7.97 at 255 evaluations",
}
ORDER = ("objective", "prior", "warm_start", "vae")
PRECISIONS: tuple[Precision, ...] = ("bf16", "float32")
WAYS: list[tuple[str, Precision]] = [
    ("compiled", "bf16"), ("as written", "float32"), ("as written", "bf16"),
    ("compiled", "float32"), ("compiled, CUDA graphs", "bf16"),
    ("compiled, channels_last", "bf16"), ("as written, channels_last", "float32"),
    ("as written", "tf32"),
]  # fmt: skip


@dataclass
class Networks:
    """The networks of a preset with random weights, and what each is trained by."""

    config: Config
    device: torch.device
    layout: torch.memory_format = torch.contiguous_format
    ready: Callable[[], None] = lambda: None  # called between compiling and what is timed

    def __post_init__(self) -> None:
        preset = self.config.selected
        image, network, latent = preset.data.image, preset.encoder.network, preset.latent
        self.prior_header = PriorHeader(
            image=image, sde=self.config.sde, network=preset.prior.network
        )
        self.encoder_header = EncoderHeader(
            image=image, sde=self.config.sde, latent=latent, network=network,
            log_determinant=self.config.objective.log_determinant,
        )  # fmt: skip
        self.vae_header = VAEHeader(image=image, latent=latent, network=network)

    def _placed(self, header: Any) -> Any:  # noqa: ANN401 (of any of the networks)
        return header.build().to(device=self.device, memory_format=self.layout)

    def prior(self) -> Prior:
        """Frozen."""
        network = self._placed(self.prior_header).eval().requires_grad_(False)
        return Prior(network, self.prior_header)

    def encoder(self) -> TrainedEncoder:
        """To train, or to decode with."""
        return TrainedEncoder(self._placed(self.encoder_header), self.encoder_header)

    def trained(self, name: str) -> tuple[nn.Module, Any]:
        """A network and its objective."""
        config, preset, prior = self.config, self.config.selected, self.prior()
        match name:
            case "prior":
                return prior.network, PriorObjective(sde=prior.sde, time=preset.prior.time)
            case "vae":
                objective = VAEObjective(
                    latent=preset.latent, beta=config.beta, error=preset.vae.error
                )
                return self._placed(self.vae_header), objective
            case "warm_start":
                teacher = self._placed(self.vae_header).encoder.requires_grad_(False)
                warm = WarmStartObjective(
                    preset.encoder.warm_start, sde=prior.sde, teacher=teacher
                )
                return self.encoder().network, warm
        score = prior_score(prior.network, prior.sde)
        return self.encoder().network, EncoderObjective(
            config.objective, sde=prior.sde, prior=score, beta=config.beta, latent=preset.latent
        )


def finished(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[int], object], networks: Networks) -> tuple[float, float]:
    """Seconds of the first call, and mean seconds of those after a warm-up."""
    device, started = networks.device, time.perf_counter()
    call(0)
    finished(device)
    first = time.perf_counter() - started
    for index in range(1, 1 + WARM_UP):
        call(index)
    finished(device)
    networks.ready()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        call(count)
        count += 1
        if count % 10 == 0:
            finished(device)
    finished(device)
    return first, (time.perf_counter() - started) / count


def step(
    networks: Networks, name: str, batch: int, precision: Precision, how: str
) -> tuple[float, float]:
    """Of one training, in one of WAYS."""
    if "channels_last" in how:
        networks = replace(networks, layout=torch.channels_last)
    device, preset = networks.device, networks.config.selected
    settings = preset.encoder.training.model_copy(
        update={"precision": precision, "batch": batch, "accumulate": 1}
    )
    module, objective = networks.trained(name)
    module.requires_grad_(True).train()
    x_0 = torch.rand(batch, *preset.data.image.shape, device=device) * 2 - 1
    x_0 = x_0.contiguous(memory_format=networks.layout)
    with patch.dict(os.environ, {"SCOREVAE_COMPILE": "graphs" if "graphs" in how else "auto"}):
        stepper = Stepper(
            module, objective, settings, Accelerator(), compiled=how.startswith("compiled")
        )

    def call(index: int) -> None:
        stepper(index, x_0, make_generator(device, 0, "steps", index), 1e-6)

    with arithmetic(precision, device):
        return timed(call, networks)


def decoding(networks: Networks, batch: int, precision: Precision) -> tuple[float, float]:
    """Of one batch by the default protocol."""
    model = ScoreVAE(
        networks.prior(), networks.encoder(), device=networks.device,
        sampling=networks.config.sampling, batch=batch,
    )  # fmt: skip
    z, model = torch.randn(batch, model.latent), model.with_precision(precision)
    return timed(lambda index: model.decode(z, seed=index), networks)


class Row(NamedTuple):
    """One measurement."""

    name: str
    how: str
    measure: Measure

    def line(self, batch: int) -> str:
        """Measure it: a line of the table."""
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        first, seconds = self.measure()
        torch.compiler.reset()
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "–"
        numbers = f"{1000 * seconds:.1f} | {batch / seconds:,.1f} | {first:.1f} | {peak}"
        return f"| {self.name} | {self.how} | {numbers} | {PUBLISHED.get(self.name, '–')} |"


def rows(networks: Networks, batch: int, only: Sequence[str] = ()) -> list[Row]:
    """Every measurement, or those of some steps; the most telling ones first.

    Compiled where a training would be.
    """
    compiles = compiling(networks.device)
    manner, found = "compiled" if compiles else "as written", []
    for precision in PRECISIONS:
        measure = partial(decoding, networks, batch, precision)
        found.append(Row("decoding", f"{manner}, {precision}", measure))
    for name, (how, precision) in product(ORDER, WAYS):
        if compiles or not how.startswith("compiled"):
            measure = partial(step, networks, name, batch, precision, how)
            found.append(Row(name, f"{how}, {precision}", measure))
    return [row for row in found if not only or row.name in only]


def networks_of(preset: str) -> Networks:
    """With random weights, on the device that there is."""
    config = load_config(ROOT / "params.yaml").model_copy(update={"preset": preset})
    return Networks(config, Accelerator().device)


def apart(
    connection: Connection, preset: str, batch: int, only: Sequence[str], index: int
) -> None:
    """One row in a process of its own, which waits for its turn to be timed."""

    def ready() -> None:
        torch.cuda.empty_cache()
        connection.send(None)
        connection.recv()

    networks = replace(networks_of(preset), ready=ready)
    connection.send(rows(networks, batch, only)[index].line(batch))


def beside(
    preset: str, batch: int, only: Sequence[str], indices: Sequence[int], until: float
) -> Iterator[str | None]:
    """The lines of some rows, compiled in as many processes at once; None of what was not."""
    context, children = get_context("spawn"), []
    for index in indices:
        ours, theirs = context.Pipe()
        arguments = theirs, preset, batch, only, index
        child = context.Process(target=apart, args=arguments, daemon=True)
        child.start()
        theirs.close()  # ours ends with the child
        children.append((child, ours))
    compiled, waiting = set(), {ours for _, ours in children}
    while waiting and (left := until - time.monotonic()) > 0:
        heard = wait(waiting, left)
        for ours in [ours for ours in waiting if ours in heard]:
            waiting.discard(ours)
            with suppress(EOFError):
                ours.recv()
                compiled.add(ours)
    for child, ours in children:
        if ours in waiting:
            child.kill()
    for _, ours in children:
        line = None
        with suppress(EOFError, BrokenPipeError):
            if ours in compiled:
                ours.send(None)
                line = ours.recv()
        yield line


@click.command(help=__doc__)
@click.option("--preset", default="cifar10_resnet", help="preset of params.yaml")
@click.option("--batch", default=128, help="images a step")
@click.option("--minutes", default=2.0, help="for everything; what is compiled is timed")
@click.option("--only", default="", help="names of steps, separated by commas; all unless told")
@click.option("--beside", "count", default=1, help="rows compiled at once, each in a process")
def main(preset: str, batch: int, minutes: float, only: str, count: int) -> None:
    """Print a row for each."""
    until = time.monotonic() + 60 * minutes
    networks, names = networks_of(preset), [name for name in only.split(",") if name]
    table = rows(networks, batch, names)
    machine = torch.cuda.get_device_name() if networks.device.type == "cuda" else "CPU"
    click.echo(
        f"{preset}, batch {batch}, {machine}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; published: on an H200, 32×32, batch 128\n"
    )
    click.echo("| step | how | ms | images/s | first, s | peak, GiB | published, images/s |")
    click.echo("|---|---|---|---|---|---|---|")
    left = []
    for first in range(0, len(table), count):
        indices = range(first, min(first + count, len(table)))
        lines: Iterator[str | None] = iter([None] * len(indices))
        if time.monotonic() < until:
            alone = (table[index].line(batch) for index in indices)
            lines = alone if count == 1 else beside(preset, batch, names, indices, until)
        for index, line in zip(indices, lines, strict=True):
            if line is None:
                left.append(f"{table[index].name} ({table[index].how})")
            else:
                click.echo(line)
    if left:
        click.echo(f"\nnot reached in {minutes:g} minutes: {', '.join(left)}")


if __name__ == "__main__":
    main()
