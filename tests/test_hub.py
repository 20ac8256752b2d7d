"""Models that are shared: folders with a card, and a Hugging Face hub that is played."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles import seeded
from pictures import Evil
from tiny import (
    tiny_config,
    write_corrector,
    write_diffusion_decoder,
    write_encoder,
    write_prior,
    write_vae,
)

from scorevae import VAE, DiffusionDecoder, ScoreVAE, ScoreVAEPlus
from scorevae.autoencoders.decoding import decoding_of, write_decoding
from scorevae.autoencoders.system import System
from scorevae.errors import UserError

KINDS: dict[type[System], list[str]] = {
    ScoreVAE: ["prior.safetensors", "encoder.safetensors", "decoding.json"],
    VAE: ["vae.safetensors"],
    ScoreVAEPlus: [
        "prior.safetensors", "encoder.safetensors", "variants/corrector.safetensors",
        "decoding.json",
    ],
    DiffusionDecoder: [
        "prior.safetensors", "variants/diffusion_decoder.safetensors", "decoding.json",
    ],
}  # fmt: skip
X = torch.rand(2, 1, 8, 8, generator=seeded(0))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of models of a run by the paper's protocol."""
    config, folder = tiny_config(**{"reconstruct.protocol": "paper"}), tmp_path / "models"
    folder.mkdir()
    write_prior(folder / "prior.safetensors", config)
    write_encoder(folder / "encoder.safetensors", config)
    write_vae(folder / "vae.safetensors", config)
    write_corrector(folder, config)
    write_diffusion_decoder(folder, config)
    write_decoding(folder / "decoding.json", decoding_of(config))
    return folder


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_was_loaded(
    models: Path, tmp_path: Path, kind: type[System]
) -> None:
    """Catches weights or headers that change on the way, lost networks, another way to decode."""
    model, saved = kind.load(models, device="cpu"), tmp_path / "deep/saved"
    model.save_pretrained(saved)
    assert files(saved) == {*KINDS[kind], "README.md"}
    for name in KINDS[kind]:
        assert (saved / name).read_bytes() == (models / name).read_bytes(), name
    again = kind.from_pretrained(saved, device="cpu")
    assert repr(again) == repr(model)
    assert torch.equal(again.reconstruct(X, seed=3), model.reconstruct(X, seed=3))


def test_what_is_said_is_saved(models: Path, tmp_path: Path) -> None:
    """Catches a model that decodes otherwise than the one that was saved, or another prior."""
    write_prior(tmp_path / "other.safetensors", tiny_config(**{"sde.t_min": 1e-3}))
    model = ScoreVAE.load(models, prior=tmp_path / "other.safetensors", guidance=0.5, device="cpu")
    model = model.with_noise_scale(0.3)
    model.save_pretrained(tmp_path / "saved")
    again = ScoreVAE.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.sampling, again.guidance, again.z) == (model.sampling, 0.5, "sample")
    assert (again.beta, again.sampling.noise_scale) == (0.01, 0.3)
    saved = (tmp_path / "saved/prior.safetensors").read_bytes()
    assert saved == (tmp_path / "other.safetensors").read_bytes()


def test_saving_again_renews_the_card_and_leaves_the_rest(models: Path, tmp_path: Path) -> None:
    """Catches a card of a former model, and a folder that is emptied."""
    model, saved = ScoreVAE.load(models, device="cpu"), tmp_path / "saved"
    model.save_pretrained(saved)
    (saved / "notes.txt").write_text("mine")
    model.with_noise_scale(0.3).save_pretrained(saved)
    assert "notes.txt" in files(saved)
    model.guidance = 3.0
    model.save_pretrained(saved)
    assert "guidance 3" in (saved / "README.md").read_text()
    model.save_pretrained(models)  # over its own files
    assert torch.equal(ScoreVAE.load(models, device="cpu").encode(X).mean, model.encode(X).mean)


def run_files(tmp_path: Path) -> dict[str, Path]:
    """What a run leaves for the card."""
    numbers = {"scorevae": {"l2": 0.123456, "psnr": None, "rate_nats": 225.3}, "prior": {"l2": 9}}
    (tmp_path / "metrics.json").write_text(
        json.dumps(numbers | {"vae": {"l2": 0.5, "psnr": None, "rate_nats": None}})
    )
    meta = {"source": "my\nphotographs", "licence": "CC0 1.0", "images": {"train": 9, "test": 4}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return {"metrics": tmp_path / "metrics.json", "data": tmp_path}


def test_card(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a number under another system, a licence or a commit that is lost, invalid YAML."""
    answers = {"HEAD": "f00d" * 10, "--show-toplevel": str(tmp_path)}
    monkeypatch.setattr("scorevae.runtime.hub.git", lambda folder, *a: answers.get(a[1], ""))
    model = ScoreVAE.load(models, device="cpu")
    model.save_pretrained(tmp_path / "saved", **run_files(tmp_path))
    text = (tmp_path / "saved/README.md").read_text(encoding="utf-8")
    for line in (
        "- source: my photographs",
        "- licence: CC0 1.0",
        "- images: 9 train, 4 test",
        f"- code: commit {'f00d' * 10}",
        "| test images | ScoreVAE | VAE |",
        "| L2 | 0.1235 | 0.5 |",
        "| rate, nats | 225.3 | – |",
        'model = ScoreVAE.from_pretrained("FOLDER or hub id")',
    ):
        assert f"\n{line}\n" in text, line
    assert "\n- β = 0.01\n- euler_maruyama in 3 steps\n" in text
    assert "PSNR" not in text
    monkeypatch.setattr("scorevae.runtime.hub.git", lambda folder, *a: answers.get(a[1], " M src"))
    model.save_pretrained(tmp_path / "saved", **run_files(tmp_path))
    assert f"commit {'f00d' * 10} with local changes" in (tmp_path / "saved/README.md").read_text()
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "saved/README.md")
    assert card.data.library_name == "scorevae"


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_card_needs_the_files_that_it_is_given(
    models: Path, tmp_path: Path, content: str | None
) -> None:
    """Catches a card without numbers where a path is wrong, and weights written before that."""
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
        (tmp_path / "metrics.json").write_text(content)
    model = ScoreVAE.load(models, device="cpu")
    for given in ({"metrics": tmp_path / "metrics.json"}, {"data": tmp_path}):
        with pytest.raises(UserError, match=r"(metrics|meta).json: (cannot be read|no JSON obj)"):
            model.save_pretrained(tmp_path / "saved", **given)
    assert not (tmp_path / "saved").exists()


def test_loading_never_unpickles(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a reader of pickles, and one fetched beside the weights."""
    for name in ("pytorch_model.bin", "prior.ckpt", "encoder.pt", "config.json"):
        (models / name).write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    monkeypatch.setattr("torch.load", None)
    monkeypatch.setattr("pickle.load", None)
    for kind in KINDS:
        kind.from_pretrained(models, device="cpu")
    assert not (tmp_path / "evil").exists()


def test_a_model_of_the_hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches another revision or token than asked for, and files fetched that are not read."""
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        from huggingface_hub.utils import filter_repo_objects

        asked.update(options, name=name)
        wanted = filter_repo_objects(files(models), allow_patterns=options["allow_patterns"])
        for file in wanted:
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(models / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    (models / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "local_files_only": True}
    for kind in KINDS:
        found = kind.from_pretrained("me/faces", device="cpu", **options)
        assert torch.equal(found.encode(X).mean, kind.load(models, device="cpu").encode(X).mean)
    del asked["allow_patterns"]
    assert asked == options | {"name": "me/faces"}
    assert "pytorch_model.bin" not in files(tmp_path / "cache")


@pytest.mark.parametrize("name", ["me/faces", "no/such/folder", "/nowhere", "models", "a b"])
def test_a_model_that_cannot_be_had(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the traceback of an HTTP library, and a name that is not said."""
    monkeypatch.chdir(tmp_path)  # a run leaves a folder models
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        ScoreVAE.from_pretrained(name)
    start = f"{name}: no such folder, and it cannot be fetched from the Hugging Face hub ("
    assert caught.value.message.startswith(start)
    assert caught.value.message.endswith(f"hf download {name} --local-dir FOLDER, and name FOLDER")
    assert "\n" not in caught.value.message


def test_push_to_hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches files left behind, a public model that should be private, and a traceback."""
    done: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            done["token"] = token

        def create_repo(self, name: str, **options: Any) -> SimpleNamespace:
            done["create"] = (name, options)
            if name == "not/mine":
                raise RuntimeError("403\nForbidden")
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
            done.update(options, files=files(folder_path))
            done["card"] = (folder_path / "README.md").read_text(encoding="utf-8")
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model = ScoreVAE.load(models, device="cpu")
    options = {"private": True, "token": "t", "commit_message": "First"}
    url = model.push_to_hub("faces", **options, **run_files(tmp_path))
    assert url == "https://hub/commit/1"
    assert done["create"] == ("faces", {"private": True, "exist_ok": True})
    assert (done["token"], done["repo_id"], done["commit_message"]) == ("t", "me/faces", "First")
    assert done["files"] == {*KINDS[ScoreVAE], "README.md"}
    assert "CC0" in done["card"]
    with pytest.raises(
        UserError, match=r"not/mine: cannot be uploaded .* \(403 Forbidden\); check"
    ):
        model.push_to_hub("not/mine")
