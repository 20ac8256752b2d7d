"""L2 of the reconstructions against network evaluations, as the table of the README.

    python benchmarks/sampler_steps.py        # after dvc repro; writes docs/sampler_steps.md

Every row starts from the same latents and the same x_1.
"""

import time

import click
from common import DOCS, open_trained

from scorevae.config import SamplingConfig
from scorevae.files import replacing
from scorevae.metrics import l2_distances, sharpness
from scorevae.model import ScoreVAE
from scorevae.sampling import network_evaluations

SAMPLERS = ("dpm_solver_pp", "sde_dpm_solver_pp", "ddim", "heun", "euler_maruyama",
            "predictor_corrector")  # fmt: skip


@click.command(help=__doc__)
@click.option("--evaluations", default="5,10,20,50,200", help="comma-separated counts")
def main(evaluations: str) -> None:
    """Write the table."""
    trained = open_trained()
    chosen, batch = trained.config.sampling, trained.config.reconstruct.batch
    lines = [
        "| sampler | network evaluations | L2 | sharpness | seconds |",
        "|---|---|---|---|---|",
    ]
    for name in SAMPLERS:
        for count in map(int, evaluations.split(",")):
            steps = (count + 1) // 2 if name in ("heun", "predictor_corrector") else count
            sampling = SamplingConfig.model_validate(
                {"sampler": name, "grid": chosen.grid, "steps": steps,
                 "corrector_snr": chosen.corrector_snr, "clip": chosen.clip}
            )  # fmt: skip
            model = ScoreVAE.load(trained.models, sampling=sampling, batch=batch)
            started = time.perf_counter()
            images = model.reconstruct(trained.originals, seed=trained.config.seed)
            seconds = time.perf_counter() - started
            distance = l2_distances(trained.originals, images).mean().item()
            sharp = sharpness(trained.originals, images)
            evaluated = network_evaluations(sampling)
            lines.append(
                f"| {name} | {evaluated} | {distance:.4f} | {sharp:.3f} | {seconds:.1f} |"
            )
            click.echo(lines[-1])
    with replacing(DOCS / "sampler_steps.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
