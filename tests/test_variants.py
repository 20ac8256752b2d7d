"""The variants of a run: off by default, trained where they are named, evaluated like the rest."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Once, isolate
from oracles import seeded
from pipeline import ROOT, command, contents, run, set_params
from tiny import NO_PARTS, save_tiny_models, tiny_config, write_corrector, write_diffusion_decoder

from scorevae.autoencoders.diffusion_decoder import DiffusionDecoder
from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
from scorevae.autoencoders.table import DRAWING, SYSTEMS, systems_of
from scorevae.commands.sync import read_results
from scorevae.errors import UserError
from scorevae.networks.conditional import load_diffusion_decoder
from scorevae.networks.corrector import load_corrector
from scorevae.objectives import DiffusionDecoderObjective
from scorevae.runtime.files import sha256
from scorevae.runtime.state import BatchFolder

BOTH = ["corrector", "diffusion_decoder"]
FOLDER = Path("models/digits/variants")
ON = {"variants": BOTH, **NO_PARTS, "evaluate.likelihood.images": 3}
NAMES = ["scorevae", "vae", "scorevae_plus", "diffusion_decoder"]


# --- what a run holds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variants", "names"),
    [
        ([], NAMES[:2]),
        (["corrector"], NAMES[:3]),
        (["diffusion_decoder"], [*NAMES[:2], NAMES[3]]),
        (BOTH[::-1], NAMES),
    ],
)
def test_systems_of_a_run(variants: list[str], names: list[str]) -> None:
    """Catches a variant without its row, or rows in the order in which variants are named."""
    found = systems_of(tiny_config(variants=variants))
    assert list(found) == names
    assert all(found[name] is SYSTEMS[name] for name in names)


def test_systems_that_draw(tmp_path: Path) -> None:
    """Catches a row that is declared with a bound, or without one, against what it is."""
    save_tiny_models(tmp_path)
    write_corrector(tmp_path, tiny_config())
    write_diffusion_decoder(tmp_path, tiny_config())
    for name in DRAWING:
        loaded = SYSTEMS[name].load(tmp_path, tiny_config(**{"reconstruct.batch": 2}))
        assert isinstance(loaded, DiffusionSystem)
    assert set(SYSTEMS) - set(DRAWING) == {"vae"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["corrector", "corrector"], "variants: got 'corrector' twice; name each once"),
        (["decoder"], r"variants.0: got 'decoder'; input should be 'corrector' or 'diffusion_de"),
        ("corrector", "variants: got 'corrector'; input should be a valid list"),
    ],
)
def test_variants_that_are_refused(variants: object, message: str) -> None:
    """Catches a variant that is misspelled and silently not trained, or trained twice."""
    with pytest.raises(UserError, match=message):
        tiny_config(variants=variants)


def test_corrector_network_must_fit_the_image() -> None:
    """Catches levels that the image has not, found after the training of all else."""
    with pytest.raises(UserError, match=r"corrector.network.channels: so many levels need"):
        tiny_config(**{"presets.digits.corrector.network.channels": [8, 8, 8, 8, 8]})


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("sampler", ["ddim", "sde_dpm_solver_pp"])
def test_no_guidance_is_the_prior(tmp_path: Path, name: str, sampler: str) -> None:
    """Catches anything that z still adds at γ = 0, bit for bit, and another x_1 or noise."""
    save_tiny_models(tmp_path)
    write_corrector(tmp_path, tiny_config())
    write_diffusion_decoder(tmp_path, tiny_config())
    sampling = tiny_config(**{"protocols.default.sampler": sampler}).sampling
    system = {"scorevae": ScoreVAE, "scorevae_plus": ScoreVAEPlus}.get(name, DiffusionDecoder)
    loaded = system.load(tmp_path, device="cpu", sampling=sampling, batch=2)
    expected = ScoreVAE.load(tmp_path, device="cpu", sampling=sampling, batch=2).sample_prior(5)
    z = torch.randn(5, 4, generator=seeded(0))
    assert torch.equal(loaded.decode(z, guidance=0.0), expected)
    assert torch.equal(loaded.sample_prior(5), expected)
    assert not torch.equal(loaded.decode(z), expected)


def test_batches_of_systems_lie_apart(tmp_path: Path) -> None:
    """Catches the batches of one system taken for those of the next."""
    kept, rows = BatchFolder(tmp_path), slice(0, 2)
    first, second = kept.of("scorevae"), kept.of("scorevae_plus")
    first.save(rows, torch.zeros(2))
    assert second.load(rows) is None
    second.save(rows, torch.ones(2))
    assert torch.equal(first.load(rows), torch.zeros(2))
    assert (first.rows(), second.rows(), kept.rows()) == (2, 2, 0)


# --- off -------------------------------------------------------------------------------------


def test_nothing_is_trained_by_default(finished: Path) -> None:
    """Catches weights, columns or metrics of systems that the run does not have."""
    assert list((finished / FOLDER).iterdir()) == []
    assert (finished / "results/digits/curves/variants.csv").read_text() == "phase,step\n"
    assert (
        not {"scorevae_plus", "diffusion_decoder"}
        & json.loads((finished / "results/digits/metrics.json").read_text()).keys()
    )
    page = (finished / "results/digits/report.html").read_text(encoding="utf-8")
    assert "ScoreVAE+</th>" not in page
    written = {
        p.name.split("_images")[0] for p in finished.glob("results/digits/reconstructions/*_im*")
    }
    assert written == {"scorevae", "vae"}


def test_nothing_to_do_costs_nothing(workspace: Path) -> None:
    """Catches PyTorch or MLflow imported by a stage that writes an empty folder."""
    shutil.rmtree(FOLDER)
    (FOLDER / "old").mkdir(parents=True)
    code = (
        "import sys, runpy\n"
        f"sys.argv = {['train_variants', *command('train_variants')[2:]]!r}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'stages/train_variants.py')!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code\n"
        "assert not {'torch', 'mlflow', 'numpy'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
    assert list(FOLDER.iterdir()) == []


# --- on --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def switched_on(once: Once, finished: Path, empty_database: Path) -> Path:
    """A copy of the finished folder, in which both variants were trained and evaluated."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        shutil.copy(empty_database, folder)
        with pytest.MonkeyPatch.context() as patch:
            isolate(patch, folder)
            patch.chdir(folder)
            set_params(**ON)
            for stage in ("train_variants", "reconstruct", "evaluate"):
                result = run(stage)
                assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
            (folder / "table.txt").write_text(result.output)

    return once("switched_on", make)


def test_both_are_trained(switched_on: Path) -> None:
    """Catches a variant that is not written, for another pair, or as it was before training."""
    models = switched_on / "models/digits"
    pair = [models / f"{name}.safetensors" for name in ("prior", "encoder")]
    files = {path.stem: path for path in (switched_on / FOLDER).iterdir()}
    assert sorted(files) == BOTH
    corrector, decoder = (
        load_corrector(files[BOTH[0]], *pair),
        load_diffusion_decoder(files[BOTH[1]]),
    )
    assert corrector.header.prior_sha256 == sha256(pair[0])
    assert corrector.network.conditioned.unet.conv_out.weight.any()
    assert decoder.header.conditioning == "concatenate"
    with (switched_on / "results/digits/curves/variants.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    assert phases == BOTH
    assert {"test_loss", "test_rate"} <= rows[0].keys()
    assert max(int(row["step"]) for row in rows) == 4
    assert not list((switched_on / "state").rglob("*.pt"))


def test_metrics_and_page_have_their_columns(switched_on: Path) -> None:
    """Catches a system that is left out of a table, and numbers that are another's."""
    numbers = json.loads((switched_on / "results/digits/metrics.json").read_text())
    assert list(numbers) == [*NAMES, "prior"]
    for name in NAMES:
        assert np.isfinite([numbers[name][key] for key in ("l2", "sharpness", "rate_nats")]).all()
    assert numbers["scorevae_plus"]["rate_nats"] == numbers["scorevae"]["rate_nats"]
    assert numbers["scorevae_plus"]["l2"] != numbers["scorevae"]["l2"]
    bounds = {name: numbers[name]["bits_per_dim"] for name in DRAWING}
    assert np.isfinite(list(bounds.values())).all()
    assert len(set(bounds.values())) == 3
    header, *errors = (switched_on / "results/digits/errors.csv").read_text().splitlines()
    assert header == "image,label," + ",".join(f"{name}_l2" for name in NAMES)
    means = np.mean([[float(v) for v in row.split(",")[2:]] for row in errors], axis=0)
    # Written with six decimals.
    np.testing.assert_allclose(means, [numbers[name]["l2"] for name in NAMES], atol=1e-6)
    page = (switched_on / "results/digits/report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert f">{SYSTEMS[name].title}<" in page
        assert SYSTEMS[name].note.split("'")[0] in page
    assert ">Corrector<" in page
    table = (switched_on / "results/digits/tables/integrand.csv").read_text().splitlines()
    assert table[0] == "log_snr,prior,scorevae,scorevae_plus,diffusion_decoder"
    head = (switched_on / "table.txt").read_text().splitlines()
    assert any(line.split() == ["metric", "ScoreVAE", "VAE", "ScoreVAE+", "Diffusion", "decoder"]
               for line in head)  # fmt: skip


def test_reconstructions_are_the_systems_own(switched_on: Path) -> None:
    """Catches batches of one system kept as another's, and another z or seed than ScoreVAE's."""
    config, folder = (
        tiny_config(**{"reconstruct.batch": 250}),
        switched_on / "results/digits/reconstructions",
    )
    x = np.load(switched_on / "data/digits/test_images.npy")[:250].transpose(0, 3, 1, 2)
    images = torch.from_numpy(x.copy()).float() / 255
    for name in DRAWING:
        system = SYSTEMS[name].load(switched_on / "models/digits", config)
        expected = system.reconstruct(images, seed=config.seed)
        found = torch.from_numpy(np.load(folder / f"{name}_images.npy"))[:250]
        # The encoder in batches of another size, through three steps: float32 convolutions.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_variant_is_the_same_beside_another(switched_on: Path, workspace: Path) -> None:
    """Catches bits that depend on what else is trained, and what a former run left behind."""
    shutil.copy(switched_on / FOLDER / "corrector.safetensors", FOLDER / "left_behind.safetensors")
    set_params(variants=["diffusion_decoder"])
    assert run("train_variants").exit_code == 0
    (path,) = FOLDER.iterdir()
    assert path.read_bytes() == (switched_on / FOLDER / path.name).read_bytes()


def test_both_conditionings_train(workspace: Path) -> None:
    """Catches a conditioning that does not reach the network."""
    key = "presets.digits.diffusion_decoder.conditioning"
    set_params(variants=["diffusion_decoder"], **{key: "scale"})
    assert run("train_variants").exit_code == 0
    loaded = load_diffusion_decoder(FOLDER / "diffusion_decoder.safetensors")
    assert loaded.header.conditioning == "scale"


def test_bf16_trains(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an objective that autocast breaks: its inner gradient, or z in bfloat16."""
    monkeypatch.setattr("scorevae.runtime.arithmetic.cpu_has_bfloat16", lambda: True)
    keys = (f"presets.digits.{name}.training.precision" for name in BOTH)
    set_params(variants=BOTH, **dict.fromkeys(keys, "bf16"))
    assert run("train_variants").exit_code == 0


def test_interrupted_training_goes_on_to_the_same_bits(
    switched_on: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a phase that is trained again, or a state of one that another phase reads."""
    set_params(**ON)
    monkeypatch.setenv("SCOREVAE_SAVE_SECONDS", "0")
    before, loss = contents(workspace), DiffusionDecoderObjective.loss
    calls = []

    def killed(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:  # when step 2 is validated, before its state is saved
            raise RuntimeError("killed")
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionDecoderObjective, "loss", killed)
        assert "killed" in str(run("train_variants").exception)
    assert {path.stem for path in workspace.glob("state/train_variants/*/*.pt")} >= set(BOTH)
    left = {k: v for k, v in contents(workspace).items() if "curves" not in k}
    assert left == {k: v for k, v in before.items() if "curves" not in k}
    again = run("train_variants")
    assert again.exit_code == 0
    assert "corrector: resuming at 4 of 4" in again.output
    assert "diffusion_decoder: resuming at 1 of 4" in again.output
    for name in BOTH:
        weights = [safetensors.torch.load_file(folder / FOLDER / f"{name}.safetensors")
                   for folder in (workspace, switched_on)]  # fmt: skip
        torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(("variants", "kept", "said"), [
    (BOTH, 2, []),
    ([], 0, []),
    (["corrector"], 1, []),
    (BOTH, 1, ["ends at step 4 of corrector, not 4 of diffusion_decoder; run `dvc repro`"]),
])  # fmt: skip
def test_sync_reads_the_curve_of_the_run(
    switched_on: Path, tmp_path: Path, variants: list[str], kept: int, said: list[str]
) -> None:
    """Catches a curve that MLflow never gets, or one demanded of a run without variants."""
    results = shutil.copytree(switched_on / "results", tmp_path / "results")
    results /= "digits"
    path, data = results / "curves/variants.csv", switched_on / "data/digits"
    head, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(row for row in rows if row.startswith(tuple(BOTH[:kept]))))
    curves, _, absent = read_results(results, data, tiny_config(variants=variants))
    assert [line.removeprefix(f"{path}: ") for line in absent] == said
    found = {curve.stage: curve.points for curve in curves}
    assert ("train_variants" in found) is (bool(kept) and not said)
    if not said and kept:
        assert {p.metric.partition("/")[0] for p in found["train_variants"]} == set(BOTH[:kept])


# --- faults ----------------------------------------------------------------------------------


def nothing() -> None:
    """The folder of variants is empty."""


def other_sde() -> None:
    set_params(variants=["corrector"], **{"sde.beta_max": 10.0})


def no_encoder() -> None:
    Path("models/digits/encoder.safetensors").unlink()


def other_latent() -> None:
    set_params(variants=["diffusion_decoder"], **{"presets.digits.latent": 5})


@pytest.mark.parametrize(
    ("stage", "damage", "message"),
    [
        ("reconstruct", nothing, "variants/corrector.safetensors: no such file; run the stage "
         "that writes it (dvc repro)"),
        ("evaluate", nothing, "scorevae_plus_images.npy: cannot be read"),
        ("train_variants", other_sde, "models/digits/prior.safetensors: its sde is"),
        ("train_variants", no_encoder, "models/digits/encoder.safetensors: no such file"),
        ("train_variants", other_latent, "models/digits/encoder.safetensors: its latent is"),
    ],
)  # fmt: skip
def test_fault_is_one_line(
    workspace: Path, stage: str, damage: Callable[[], None], message: str
) -> None:
    """Catches a traceback where a variant is switched on and its weights, or its pair, are not."""
    set_params(variants=["corrector"])
    damage()
    before = contents(workspace)
    result = run(stage)
    assert result.exit_code == 1
    error = result.output.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert contents(workspace) == before
