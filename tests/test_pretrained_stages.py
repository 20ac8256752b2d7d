"""A prior from elsewhere in the pipeline, and a prior exchanged after training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pipeline import ROOT, run, set_params
from safetensors import safe_open
from test_pretrained import GUIDED, HO, edit, guided_config, write_guided, write_pipeline
from test_pretrained_edm import pickled
from test_pretrained_score_sde import checkpoint, settings_of
from tiny import NO_PARTS, tiny_config, write_encoder, write_prior

from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
from scorevae.commands.priors import main as priors
from scorevae.config import ImageConfig
from scorevae.errors import UserError
from scorevae.networks.prior import load_prior

PRIOR, ENCODER = Path("models/digits/prior.safetensors"), Path("models/digits/encoder.safetensors")
H200 = ROOT.parent / "shared/models/cifar10_h200"
GREY = {"in_channels": 1, "out_channels": 1}


def pretrained(path: str, **changes) -> dict:
    """Overrides that ask for a folder of diffusers."""
    source = {"format": "diffusers", "path": path, "revision": None, "sha256": None}
    return {
        "presets.digits.prior.source": "pretrained",
        "presets.digits.prior.pretrained": source | changes,
        "presets.digits.prior.training.steps": 0,
    } | NO_PARTS


def header(path: Path) -> dict:
    """What a weights file says of itself."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["scorevae"])


def test_the_pipeline_goes_on_from_a_prior_of_others(workspace: Path) -> None:
    """Catches a stage that knows our own U-Net alone, and an import that changes the weights."""
    network = write_pipeline(Path("theirs"), {}, **HO, **GREY)
    set_params(**pretrained("theirs"))
    for stage in ("train_prior", "train_encoder", "reconstruct", "evaluate"):
        result = run(stage)
        assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
    said = header(PRIOR)["network"]
    assert (said["origin"], said["prediction"]) == ("diffusers folder theirs", "noise")
    prior = load_prior(PRIOR).network
    found = {name.removeprefix("network.unet."): v for name, v in prior.state_dict().items()}
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[name].double(), value)
    page = Path("results/digits/report.html").read_text()
    assert "diffusers folder theirs" in page
    assert "not trained with" not in page
    images = ScoreVAE.load("models/digits", device="cpu").sample(2)
    assert torch.isfinite(images).all()


def guided(name: str) -> dict:
    """A file of guided- or improved-diffusion, and the settings that ask for it."""
    learned = name == "improved_diffusion"
    write_guided(Path("theirs.pt"), GUIDED, learned=learned, channels=1)
    return guided_config(
        Path("theirs.pt"), GUIDED, format=name, learned_variance=learned
    ).model_dump()


def score_sde(name: str) -> dict:
    """A checkpoint of score_sde, likewise."""
    settings = settings_of(Path("theirs.pth"), "vp")
    checkpoint(settings, ImageConfig(channels=1, size=8))
    return settings.model_dump()


def edm(name: str) -> dict:
    """A pickle of EDM, converted as the documentation says."""
    pickled(Path("theirs.pkl"), channels=1)
    done = CliRunner().invoke(priors, ["convert-edm", "theirs.pkl", "theirs.safetensors"])
    assert done.exit_code == 0, done.output
    return {"format": name, "path": "theirs.safetensors", "sha256": None}


def own(name: str) -> dict:
    """A prior of ours."""
    write_prior(Path("theirs.safetensors"), tiny_config())
    return {"format": name, "path": "theirs.safetensors", "sha256": None}


FORMATS = {
    "guided_diffusion": guided,
    "improved_diffusion": guided,
    "score_sde": score_sde,
    "edm": edm,
    "own": own,
}


def test_a_prior_is_imported_by_itself(workspace: Path) -> None:
    """Catches other weights than train_prior's, a file overwritten, and a preset without one."""
    set_params(**pretrained("") | {"presets.digits.prior.pretrained": own("own")})
    assert run("train_prior").exit_code == 0
    call = CliRunner().invoke
    done = call(priors, ["import-prior", "there.safetensors"])
    assert done.exit_code == 0, done.output
    ours, theirs = Path("there.safetensors"), Path("models/digits/prior.safetensors")
    assert ours.read_bytes() == theirs.read_bytes()
    assert "there.safetensors: exists" in call(priors, ["import-prior", str(ours)]).output
    for preset, message in {
        "mnist": "presets.mnist.prior.pretrained: null; name the format",
        "nobody": "--preset: nobody is none; choose one of: digits, ",
    }.items():
        refused = call(priors, ["import-prior", "new.safetensors", "--preset", preset])
        assert message in refused.output
    assert not Path("new.safetensors").exists()


@pytest.mark.faults
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_goes_to_the_end(workspace: Path, name: str) -> None:
    """Catches a format that a later stage cannot read: from its file to the report."""
    source = {"presets.digits.prior.pretrained": FORMATS[name](name)}
    known = {} if name == "own" else {"sde.t_min": 0.05, "sde.t_max": 0.6}
    set_params(**pretrained("") | source | known)
    for stage in ("train_prior", "train_encoder", "reconstruct", "evaluate"):
        result = run(stage)
        assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
    origin = header(PRIOR)["network"].get("origin", "own")
    assert origin.lower().startswith(name)
    assert torch.isfinite(ScoreVAE.load("models/digits", device="cpu").sample(2)).all()


def test_fine_tuning_goes_on_from_its_weights(workspace: Path) -> None:
    """Catches training from nothing, and none: after three steps they are near, not equal."""
    write_pipeline(Path("theirs"), {}, **HO, **GREY)
    set_params(**pretrained("theirs"))
    assert run("train_prior").exit_code == 0
    before = load_prior(PRIOR).network.state_dict()
    rate = {"presets.digits.prior.training.learning_rate": 1e-4}
    set_params(**pretrained("theirs") | {"presets.digits.prior.training.steps": 3} | rate)
    result = run("train_prior")
    assert result.exit_code == 0, result.output
    after = load_prior(PRIOR).network.state_dict()
    moved = max((after[name] - value).abs().max().item() for name, value in before.items())
    assert 0 < moved < 3.01e-4  # Adam moves a weight by at most the learning rate in a step


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: edit(f / "unet/config.json", sample_size=32), "sample_size is 32"),
        (lambda f: shutil.rmtree(f), "'theirs' does not exist"),
    ],
)
def test_what_cannot_be_imported_costs_nothing(workspace: Path, damage, expected: str) -> None:
    """Catches a refusal after training, or one that takes the former prior with it."""
    write_pipeline(Path("theirs"), {}, **GREY)
    damage(Path("theirs"))
    set_params(**pretrained("theirs"))
    before = PRIOR.read_bytes()
    result = run("train_prior")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert expected in result.output
    assert result.output.count("\n") == 1
    assert PRIOR.read_bytes() == before


def test_another_prior_decodes(workspace: Path) -> None:
    """Catches a prior that is named and not used, by the pipeline or by Python."""
    write_prior(Path("other.safetensors"), tiny_config())
    before = Path("results/digits/reconstructions/scorevae_images.npy").read_bytes()
    set_params(**{"reconstruct.prior": "other.safetensors"} | NO_PARTS)
    for stage in ("reconstruct", "evaluate"):
        result = run(stage)
        assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
    assert Path("results/digits/reconstructions/scorevae_images.npy").read_bytes() != before
    assert (
        "a prior that its encoder was not trained with"
        in Path("results/digits/report.html").read_text()
    )
    sampling = tiny_config().sampling
    own, swapped, as_run = (
        ScoreVAE.load("models/digits", prior=prior, device="cpu", sampling=sampling)
        for prior in (PRIOR, "other.safetensors", None)
    )
    z = torch.zeros(2, 4)
    assert not torch.allclose(own.decode(z), swapped.decode(z))
    assert torch.equal(as_run.decode(z), swapped.decode(z))


def test_a_foreign_prior_serves_any_process(workspace: Path) -> None:
    """Catches a prior that is asked about the process it was imported for, not the encoder's."""
    write_pipeline(Path("theirs"), {}, **HO, **GREY)
    short = {"sde.kind": "ve", "sde.t_min": 0.1, "sde.t_max": 0.9}
    set_params(**pretrained("theirs") | short)
    assert run("train_prior").exit_code == 0
    PRIOR.rename("ve.safetensors")
    set_params(**pretrained("theirs"))
    assert run("train_prior").exit_code == 0
    assert run("train_encoder").exit_code == 0
    own, other = (
        ScoreVAE.load("models/digits", prior=prior, device="cpu")
        for prior in (None, "ve.safetensors")
    )
    torch.testing.assert_close(own.decode(torch.zeros(2, 4)), other.decode(torch.zeros(2, 4)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"presets.digits.data.image.size": 16},
            r"the encoder's image is \(.*size=8\), the prior",
        ),
        ({"sde.kind": "subvp"}, r"the encoder's sde is \(kind='vp'.*, not the prior's \(.*subvp"),
        ({"sde.t_max": 0.9}, r"the process goes from .*; set sde.t_max to 0.9 or less"),
    ],
)
def test_priors_that_do_not_fit_are_refused(workspace: Path, changes: dict, expected: str) -> None:
    """Catches scores of two processes or image spaces added up."""
    write_prior(Path("other.safetensors"), tiny_config(**changes))
    with pytest.raises(UserError, match=expected):
        ScoreVAE.load("models/digits", prior="other.safetensors", device="cpu")


def test_a_corrector_takes_no_other_prior(workspace: Path) -> None:
    """Catches a correction of one prior's errors added to another's score."""
    set_params(variants=["corrector"], **NO_PARTS)
    assert run("train_variants").exit_code == 0
    write_prior(Path("other.safetensors"), tiny_config())
    with pytest.raises(UserError, match="a corrector of another prior"):
        ScoreVAEPlus.load("models/digits", prior="other.safetensors", device="cpu")


def test_a_named_prior_that_is_not_there(workspace: Path) -> None:
    """Catches a traceback, and a run that decodes with its own prior all the same."""
    set_params(**{"reconstruct.prior": "gone.safetensors"} | NO_PARTS)
    result = run("reconstruct")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "reconstruct.prior: 'gone.safetensors' does not exist" in result.output


def test_the_command_writes_a_pipeline(workspace: Path) -> None:
    """Catches a command without its library, and one that writes over a folder."""
    done = CliRunner().invoke(priors, ["export", str(PRIOR), "pipeline"])
    assert done.exit_code == 0, done.output
    assert Path("pipeline/model_index.json").is_file()
    again = CliRunner().invoke(priors, ["export", str(PRIOR), "pipeline"])
    assert again.exit_code == 1
    assert "pipeline: exists and is not empty" in again.output


def test_the_source_needs_its_settings() -> None:
    """Catches ``source: pretrained`` that trains one all the same."""
    with pytest.raises(UserError, match="prior: pretrained: got null"):
        tiny_config(**{"presets.digits.prior.source": "pretrained"})


def test_the_command_converts_edm(tmp_path: Path, monkeypatch) -> None:
    """Catches a conversion that writes over what is there, and half of a file left behind."""
    monkeypatch.chdir(tmp_path)
    Path("broken.pkl").write_bytes(b"no pickle")
    Path("there.safetensors").write_bytes(b"")
    refused = CliRunner().invoke(priors, ["convert-edm", "broken.pkl", "there.safetensors"])
    assert "there.safetensors: exists; name another file" in refused.output
    refused = CliRunner().invoke(priors, ["convert-edm", "broken.pkl", "new.safetensors"])
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert not Path("new.safetensors").exists()


@pytest.mark.skipif(not H200.is_dir(), reason="no ../shared/models beside the project")
def test_a_prior_of_before_decodes_under_another_encoder(tmp_path: Path) -> None:
    """Catches weights of former versions that no longer serve: their header knows no t_max."""
    image = {"presets.digits.data.image": {"channels": 3, "size": 32}}
    write_encoder(tmp_path / "encoder.safetensors", tiny_config(**image))
    sampling = tiny_config().sampling
    model = ScoreVAE.load(
        tmp_path, prior=H200 / "prior.safetensors", device="cpu", sampling=sampling
    )
    images = model.decode(torch.zeros(2, 4))
    assert images.shape == (2, 3, 32, 32)
    assert images.std() > 0.05
