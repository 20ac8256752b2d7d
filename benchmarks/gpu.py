"""The whole comparison with the paper's networks on one GPU, within a given time.

    python benchmarks/gpu.py --root FOLDER --minutes 20   # writes the folder gpu_run
    python benchmarks/gpu.py --preset digits --no-parts --minutes 3 --batch 64    # on a CPU

Takes a preset of the paper (cifar10 unless told), bf16, and the warm start. The minutes are for
everything after the data are there: compiling, a rehearsal of all stages in a few steps and
images, the trainings, and the evaluation with 20 network evaluations and with 250. The rehearsal
says what each costs; the trainings get what the first evaluation leaves, each its share; the
second one, of the headline alone, is made if it still fits. Every figure is printed as it is had,
and `gpu_run/report.md` holds steps, images per second, memory and metrics. Nothing else need be
installed or trained; weights stay in `gpu_run/models`, and in half precision in `gpu_run/half`.
"""

import copy
import csv
import json
import os
import runpy
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import yaml
from common import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scorevae.config import read_tree

GRAPH: Any = read_tree(ROOT / "dvc.yaml")
STAGES = tuple(name for name in GRAPH["stages"] if name != "check")
# Share of the minutes, and where the settings of the training lie in the preset.
TRAININGS = {
    "prior": (0.5, ("prior",)),
    "vae": (0.08, ("vae",)),
    "warm_start": (0.07, ("encoder", "warm_start")),
    "objective": (0.35, ("encoder",)),
}
CURVES = {"prior": "prior", "vae": "vae", "warm_start": "encoder", "objective": "encoder"}
EVALUATIONS = (20, 250)
EVALUATION = ("reconstruct", "evaluate")
REHEARSED = 100  # images
IMAGES = (10_000, 5_000, 2_000, 1_000, 500, 200, REHEARSED)  # of the test set, at most
SAFETY = 0.9  # of the time that is left


def training(preset: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of one training, to be changed in place."""
    for key in TRAININGS[name][1]:
        preset = preset[key]
    settings: dict[str, Any] = preset["training"]
    return settings


def parameters(name: str, root: str | None, batch: int) -> dict[str, Any]:
    """params.yaml with the preset selected, bf16, a cosine schedule and no required LPIPS."""
    tree: Any = read_tree(ROOT / "params.yaml")
    tree["preset"] = name
    preset = tree["presets"][name]
    preset["data"]["root"] = root if root is None else str(Path(root).resolve())
    preset["lpips"]["required"] = False
    precision = "bf16" if torch.cuda.is_available() else "float32"  # where it is a rehearsal
    for part in TRAININGS:
        training(preset, part).update(
            {"batch": batch, "precision": precision, "schedule": "cosine", "warmup": 100}
        )
    return tree


def run(stage: str, preset: str) -> tuple[float, float]:
    """One stage as dvc.yaml states it, in this process: seconds, peak gigabytes of the GPU."""
    command = GRAPH["stages"][stage]["cmd"].replace("${preset}", preset)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    main = runpy.run_path(str(ROOT / "stages" / f"{stage}.py"))["main"]
    main.main(command.split()[2:], standalone_mode=False)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    seconds = time.perf_counter() - started
    click.echo(f"{stage}: {seconds:.0f} s, peak {memory:.1f} GiB")
    return seconds, memory


def last_seconds(preset: str, name: str) -> tuple[int, float]:
    """Steps and seconds of a training, from its curve."""
    with Path(f"results/{preset}/curves/{CURVES[name]}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == name]
    return int(rows[-1]["step"]), float(rows[-1]["seconds"])


class Speed(NamedTuple):
    """What a training costs."""

    before: float  # seconds until the first step: building, compiling
    step: float  # seconds


class Budget:
    """The minutes, and what is left of them."""

    def __init__(self, minutes: float) -> None:
        self._until = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._until - time.monotonic()


def write(tree: dict[str, Any]) -> None:
    """params.yaml of the next stage."""
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def speed(preset: str, name: str) -> Speed:
    """Of a training whose curve has rows at equal distances."""
    with Path(f"results/{preset}/curves/{CURVES[name]}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == name and row["loss"]]
    (first, seconds), (last, until) = ((int(r["step"]), float(r["seconds"])) for r in rows[::2])
    step = (until - seconds) / (last - first)
    return Speed(max(0.0, seconds - first * step), step)


def rehearse(
    tree: dict[str, Any], preset: str, steps: int
) -> tuple[dict[str, Speed], dict[str, float]]:
    """The cost of each training, and seconds of each further stage for REHEARSED images."""
    rehearsal = copy.deepcopy(tree)
    for name in TRAININGS:
        training(rehearsal["presets"][preset], name).update(
            {"steps": 3 * steps, "log_every": steps, "validate_every": 10 * steps}
        )
    rehearsal["presets"][preset]["test_images"] = REHEARSED
    write(rehearsal)
    costs = {stage: run(stage, preset)[0] for stage in STAGES[1:]}
    speeds = {name: speed(preset, name) for name in TRAININGS}
    for name, (before, step) in speeds.items():
        rate = training(tree["presets"][preset], name)["batch"] / step
        click.echo(f"rehearsal: {name}: {before:.0f} s to begin, {rate:,.0f} images/s")
    return speeds, {stage: costs[stage] for stage in EVALUATION}


def evaluating(costs: dict[str, float], images: int, evaluations: int) -> float:
    """Seconds of reconstructing and evaluating so many images, from those of the rehearsal.

    The parts of the evaluation have their own numbers of images, and are not made a second time.
    """
    scale = evaluations / EVALUATIONS[0]
    return scale * costs["reconstruct"] * images / REHEARSED + costs["evaluate"]


def without_parts(tree: dict[str, Any]) -> None:
    """Evaluate the headline metrics alone."""
    for settings in tree["evaluate"].values():
        if isinstance(settings, dict):
            settings["images"] = 0


def plan(
    tree: dict[str, Any], preset: str, speeds: dict[str, Speed], costs: dict[str, float],
    budget: Budget,
) -> None:  # fmt: skip
    """Give the trainings their steps and the evaluation its images, so that they fit."""
    for images in IMAGES:
        left = SAFETY * budget.left - evaluating(costs, images, EVALUATIONS[0])
        if left > SAFETY * budget.left / 2 or images == IMAGES[-1]:
            break
    tree["presets"][preset]["test_images"] = images
    left -= sum(before for before, _ in speeds.values())
    for name, (_, step) in speeds.items():
        steps = max(1, int(left * TRAININGS[name][0] / step))
        every = max(1, steps // 20)
        training(tree["presets"][preset], name).update(
            {"steps": steps, "log_every": every, "validate_every": every * 4}
        )
    click.echo(f"planned: {left:.0f} s of training, {images} test images")


def halve(source: Path, target: Path) -> None:
    """The weights with half the bits, to be carried away."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        halved = {name: value.half() for name, value in load_file(path).items()}
        save_file(halved, target / path.name, metadata)


def report(tree: dict[str, Any], costs: dict[str, tuple[float, float]], preset: str) -> None:
    """Append what was trained, and how fast."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [f"{preset} on {device}, torch {torch.__version__}", ""]
    lines += ["| training | steps | seconds | images/s |", "|---|---|---|---|"]
    for name in TRAININGS:
        steps, seconds = last_seconds(preset, name)
        rate = steps * training(tree["presets"][preset], name)["batch"] / seconds
        lines.append(f"| {name} | {steps} | {seconds:.0f} | {rate:.0f} |")
    lines += ["", "| stage | seconds | peak memory, GiB |", "|---|---|---|"]
    lines += [f"| {name} | {s:.0f} | {gib:.1f} |" for name, (s, gib) in costs.items()]
    for count in EVALUATIONS:
        if not Path(f"results/{preset}/metrics_{count}.json").exists():
            lines += ["", f"{count} evaluations: not made, the minutes were over"]
            continue
        numbers = json.loads(Path(f"results/{preset}/metrics_{count}.json").read_text())
        lines += ["", f"| {count} evaluations | ScoreVAE | VAE |", "|---|---|---|"]
        lines += [f"| {k} | {v} | {numbers['vae'][k]} |" for k, v in numbers["scorevae"].items()]
    Path("report.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


def evaluate(
    tree: dict[str, Any], preset: str, count: int, costs: dict[str, tuple[float, float]]
) -> None:
    """Reconstruct and evaluate with so many network evaluations, and keep what came out."""
    tree["protocols"]["default"]["steps"] = count
    write(tree)
    for stage in EVALUATION:
        costs[f"{stage}, {count} evaluations"] = run(stage, preset)
    results = Path("results") / preset
    shutil.copy(results / "metrics.json", results / f"metrics_{count}.json")
    shutil.copytree(results / "figures", results / f"figures_{count}", dirs_exist_ok=True)


@click.command(help=__doc__)
@click.option("--preset", default="cifar10", help="preset of params.yaml")
@click.option("--root", default=None, help="data.root; without it the data are fetched")
@click.option("--minutes", default=20.0, help="for everything but the data")
@click.option("--batch", default=128, help="images a step")
@click.option("--rehearsal", default=20, help="a third of the steps that are rehearsed")
@click.option("--parts/--no-parts", default=True, help="of the evaluation, beside its headline")
@click.option("--output", default="gpu_run", type=click.Path(path_type=Path))
def main(
    preset: str,
    root: str | None,
    minutes: float,
    batch: int,
    rehearsal: int,
    parts: bool,
    output: Path,
) -> None:
    """Run it."""
    tree = parameters(preset, root, batch)
    if not parts:
        without_parts(tree)
    output.mkdir(parents=True, exist_ok=True)
    os.chdir(output)
    os.environ.setdefault("SCOREVAE_STATE", str(Path("state").resolve()))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    os.environ["SCOREVAE_PROCESSES"] = "1"  # the stages run in this process
    for path in Path().glob("results/*/metrics_*.json"):  # of a run before
        path.unlink()
    write(tree)
    costs = {"download": run("download", preset)}
    budget = Budget(minutes)
    speeds, seconds = rehearse(tree, preset, rehearsal)
    plan(tree, preset, speeds, seconds, budget)
    write(tree)
    for stage in STAGES[1:5]:
        costs[stage] = run(stage, preset)
    evaluate(tree, preset, EVALUATIONS[0], costs)
    halve(Path(f"models/{preset}"), Path("half"))
    images = tree["presets"][preset]["test_images"]
    if budget.left > evaluating(seconds, images, EVALUATIONS[1]):
        without_parts(tree)
        evaluate(tree, preset, EVALUATIONS[1], costs)
    report(tree, costs, preset)
    click.echo(f"{minutes * 60 - budget.left:.0f} s of {minutes * 60:.0f} s")


if __name__ == "__main__":
    main()
