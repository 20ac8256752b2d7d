"""What saving the state costs, against the training time between two savings.

    python benchmarks/saving.py               # a minute; prints a table

Builds the prior of each preset with its Adam moments and its average, which is all that a state
holds, and saves it as a training does: twice, so that the state before is put aside as well. The
share is that of one saving in the default interval between two of them.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from common import ROOT

from scorevae.config import Config, load_config
from scorevae.networks.prior import PriorUNet
from scorevae.runtime.state import StateFile
from scorevae.sde import build_sde
from scorevae.training.loop import save_interval
from scorevae.training.step import Average


def state_of(config: Config, preset: str) -> tuple[int, dict[str, Any]]:
    """Number of parameters and full training state of a preset's prior after one step."""
    chosen = config.presets[preset]
    module = PriorUNet(chosen.data.image, chosen.prior.network, build_sde(config.sde))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    averaged = Average(module, chosen.prior.training.ema)
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": averaged.state_dict(),
    }
    return sum(p.numel() for p in module.parameters()), state


@click.command(help=__doc__)
@click.option("--presets", default="digits,cifar10_small,cifar10,celeba64")
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT, help="on the disk to try")
def main(presets: str, folder: Path) -> None:
    """Print one row for each preset."""
    config, interval = load_config(ROOT / "params.yaml"), save_interval()
    click.echo("| prior of | parameters | state, MB | one saving, s | share of training |")
    click.echo("|---|---|---|---|---|")
    for preset in presets.split(","):
        count, state = state_of(config, preset)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            file = StateFile(Path(temporary) / "state.pt", preset)
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                file.save(state)
                seconds.append(time.perf_counter() - started)
            megabytes = file.path.stat().st_size / 1e6
        share = max(seconds) / (interval + max(seconds))
        click.echo(
            f"| {preset} | {count:,} | {megabytes:.0f} | {max(seconds):.2f} | {share:.2%} |"
        )


if __name__ == "__main__":
    main()
