"""The whole comparison with the paper's networks on one GPU, within a given time.

    python benchmarks/gpu.py --root FOLDER --minutes 20   # writes the folder gpu_run

Takes a preset of the paper (cifar10 unless told), bf16, and the warm start; times each training
for some steps, gives each its share of the minutes, runs the six stages, evaluates with 20 and
with 250 network evaluations, and writes `gpu_run/report.md`: steps, images per second, memory and
metrics. Nothing else need be installed or trained; weights stay in `gpu_run/models`.
"""

import csv
import json
import os
import runpy
import shutil
import time
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from common import ROOT

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
    for part in TRAININGS:
        training(preset, part).update(
            {"batch": batch, "precision": "bf16", "schedule": "cosine", "warmup": 100}
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
    return time.perf_counter() - started, memory


def last_seconds(preset: str, name: str) -> tuple[int, float]:
    """Steps and seconds of a training, from its curve."""
    with Path(f"results/{preset}/curves/{CURVES[name]}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == name]
    return int(rows[-1]["step"]), float(rows[-1]["seconds"])


def calibrate(tree: dict[str, Any], preset: str, steps: int) -> dict[str, float]:
    """Seconds a step of each training, the first ``steps`` steps left out."""
    seconds: dict[str, float] = {}
    for name in TRAININGS:
        training(tree["presets"][preset], name).update(
            {"steps": 3 * steps, "log_every": steps, "validate_every": 10 * steps}
        )
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for stage in STAGES[1:4]:
        run(stage, preset)
    for name in TRAININGS:
        with Path(f"results/{preset}/curves/{CURVES[name]}.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["phase"] == name and row["loss"]]
        spent = float(rows[-1]["seconds"]) - float(rows[0]["seconds"])
        seconds[name] = spent / (int(rows[-1]["step"]) - int(rows[0]["step"]))
    return seconds


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
        numbers = json.loads(Path(f"results/{preset}/metrics_{count}.json").read_text())
        lines += ["", f"| {count} evaluations | ScoreVAE | VAE |", "|---|---|---|"]
        lines += [f"| {k} | {v} | {numbers['vae'][k]} |" for k, v in numbers["scorevae"].items()]
    Path("report.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


@click.command(help=__doc__)
@click.option("--preset", default="cifar10", help="preset of params.yaml")
@click.option("--root", default=None, help="data.root; without it the data are fetched")
@click.option("--minutes", default=20.0, help="for the trainings together")
@click.option("--batch", default=128, help="images a step")
@click.option("--calibration", default=20, help="a third of the steps that are timed")
@click.option("--output", default="gpu_run", type=click.Path(path_type=Path))
def main(
    preset: str, root: str | None, minutes: float, batch: int, calibration: int, output: Path
) -> None:
    """Run it."""
    tree = parameters(preset, root, batch)
    output.mkdir(parents=True, exist_ok=True)
    os.chdir(output)
    os.environ.setdefault("SCOREVAE_STATE", str(Path("state").resolve()))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    costs = {"download": run("download", preset)}
    for name, seconds in calibrate(tree, preset, calibration).items():
        steps = max(1, int(60 * minutes * TRAININGS[name][0] / seconds))
        every = max(1, steps // 20)
        training(tree["presets"][preset], name).update(
            {"steps": steps, "log_every": every, "validate_every": every * 4}
        )
    for count in EVALUATIONS:
        tree["protocols"]["default"]["steps"] = count
        Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        for stage in STAGES[1 if count == EVALUATIONS[0] else 4 :]:
            costs[f"{stage}, {count} evaluations" if stage in STAGES[4:] else stage] = run(
                stage, preset
            )
        results = Path("results") / preset
        shutil.copy(results / "metrics.json", results / f"metrics_{count}.json")
        shutil.copytree(results / "figures", results / f"figures_{count}", dirs_exist_ok=True)
    report(tree, costs, preset)


if __name__ == "__main__":
    main()
