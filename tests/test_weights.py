"""weights: a weights file rebuilds its network; any other file is refused by name."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from limits import disk_of
from pictures import listing
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_config, write_encoder, write_prior, write_vae
from torch import nn

from scorevae.config import Config
from scorevae.errors import UserError
from scorevae.networks.encoder import EncoderHeader, build_encoder, load_encoder
from scorevae.networks.prior import PriorHeader, PriorUNet, load_prior
from scorevae.networks.vae import VAE, VAEHeader, load_vae
from scorevae.networks.weights import check_header, read_header, save_weights
from scorevae.randomness import global_seed
from scorevae.sde import build_sde

CONV = {"presets.digits.encoder.network.kind": "conv"}
WRITERS = {"prior": write_prior, "encoder": write_encoder, "vae": write_vae}
LOADERS = {"prior": load_prior, "encoder": load_encoder, "vae": load_vae}
HEADERS = {"prior": PriorHeader, "encoder": EncoderHeader, "vae": VAEHeader}


def assert_frozen(network: nn.Module) -> None:
    """Evaluation mode, no gradients."""
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and times."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.0, 0.3, 1.0])


@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_prior_survives(tmp_path: Path, kind: str) -> None:
    """Catches weights, settings or a process that are not those that were saved."""
    config = tiny_config(**{"sde.kind": kind})
    network = write_prior(tmp_path / "p", config)
    loaded = load_prior(tmp_path / "p")
    assert torch.equal(loaded.network(*inputs()), network(*inputs()))
    assert (loaded.sde, loaded.header.sde) == (network.sde, config.sde)
    assert loaded.header.network == config.selected.prior.network
    assert_frozen(loaded.network)


@pytest.mark.parametrize("changes", [{}, CONV, {"sde.kind": "ve"}, {**CONV, "sde.kind": "subvp"}])
def test_encoder_survives(tmp_path: Path, changes: dict[str, object]) -> None:
    """Catches a kind, a process or a log-determinant that the file does not remember."""
    config = tiny_config(**changes, **{"objective.log_determinant": "dropped"})
    network = write_encoder(tmp_path / "e", config)
    loaded = load_encoder(tmp_path / "e")
    assert all(map(torch.equal, loaded.network(*inputs()), network(*inputs())))
    assert loaded.header.sde == config.sde
    assert (loaded.header.latent, loaded.header.log_determinant) == (4, "dropped")
    assert_frozen(loaded.network)


@pytest.mark.parametrize("changes", [{}, CONV])
def test_vae_survives(tmp_path: Path, changes: dict[str, object]) -> None:
    """Catches an encoder or decoder that comes back as another one."""
    network = write_vae(tmp_path / "v", tiny_config(**changes))
    loaded = load_vae(tmp_path / "v").network
    posterior, expected = loaded.encoder(*inputs()), network.encoder(*inputs())
    assert all(map(torch.equal, posterior, expected))
    assert torch.equal(loaded.decoder(expected.mean), network.decoder(expected.mean))
    assert_frozen(loaded)


def constructed(kind: str, config: Config) -> nn.Module:
    """The network as its class makes it of the parameters."""
    preset, sde = config.selected, build_sde(config.sde)
    image, latent, settings = preset.data.image, preset.latent, preset.encoder.network
    return {
        "prior": lambda: PriorUNet(image, preset.prior.network, sde),
        "encoder": lambda: build_encoder(settings, image, latent, sde),
        "vae": lambda: VAE(settings, image, latent),
    }[kind]()


@pytest.mark.parametrize("changes", [{}, CONV, {"sde.kind": "ve"}])
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_builds_its_network(tmp_path: Path, kind: str, changes: dict) -> None:
    """Catches layers made in another order, whose first weights would not be the seed's."""
    config = tiny_config(**changes)
    WRITERS[kind](tmp_path / "w", config)
    header = read_header(tmp_path / "w", HEADERS[kind])
    with global_seed(1, "weights"):
        built = header.build()
    with global_seed(1, "weights"):
        expected = constructed(kind, config)
    assert list(built.state_dict()) == list(expected.state_dict())
    assert str(built) == str(expected)
    torch.testing.assert_close(built.state_dict(), expected.state_dict(), rtol=0, atol=0)
    processes = {module.sde for module in built.modules() if hasattr(module, "sde")}
    assert processes == (set() if kind == "vae" else {build_sde(config.sde)})


@pytest.mark.parametrize(("written", "wanted"), list(permutations(LOADERS, 2)))
def test_wrong_kind(tmp_path: Path, written: str, wanted: str) -> None:
    """Catches a VAE's weights taken for an encoder's."""
    WRITERS[written](tmp_path / "w", tiny_config())
    expected = rf"w: holds {written} weights of format 2; give {wanted} weights of format 2"
    with pytest.raises(UserError, match=expected):
        LOADERS[wanted](tmp_path / "w")


NOT_SAFETENSORS = r"not a safetensors file \(.*\); give {kind} weights written by ScoreVAE"


@pytest.mark.parametrize(("damage", "message"), [
    (Path.unlink, r"no such file; run the stage that writes it \(dvc repro\)"),
    (lambda path: torch.save({"weight": torch.zeros(3)}, path), NOT_SAFETENSORS),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), NOT_SAFETENSORS),
    (lambda path: path.write_bytes(b""), NOT_SAFETENSORS),
    (lambda path: save_file({"weight": torch.zeros(3)}, path),
     "carries no ScoreVAE header; give {kind} weights written by ScoreVAE"),
], ids=["absent", "pickled", "truncated", "empty", "foreign"])  # fmt: skip
@pytest.mark.parametrize("kind", LOADERS)
def test_other_files(
    tmp_path: Path, kind: str, damage: Callable[[Path], object], message: str
) -> None:
    """Catches a traceback, or code run out of a pickle, where a user gives another file."""
    path = tmp_path / "w.safetensors"
    WRITERS[kind](path, tiny_config())
    damage(path)
    with pytest.raises(UserError, match=f"^{path}: {message.replace('{kind}', kind)}$"):
        LOADERS[kind](path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"format": 3}, "holds encoder weights of format 3; give encoder weights of format 2$"),
    ({"latent": 5}, r"e: the weights do not fit the header \(.*\); write"),
    ({"latent": "four"}, "e: latent: got 'four'; input should be a valid integer"),
    ({"data_range": "[0, 1]"}, r"e: .* weights for images in \[0, 1\]; images are in"),
])  # fmt: skip
def test_header_that_does_not_fit(tmp_path: Path, changes: dict, message: str) -> None:
    """Catches weights of a future format, partly loaded, or of images in another range."""
    path = tmp_path / "e"
    network = write_encoder(path, tiny_config())
    header = read_header(path, EncoderHeader).model_dump(mode="json") | changes
    save_file(network.state_dict(), path, metadata={"scorevae": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        load_encoder(path)


def test_check_header(tmp_path: Path) -> None:
    """Catches an encoder trained with one process and used with another."""
    config, path = tiny_config(), tmp_path / "e"
    write_encoder(path, config)
    header = read_header(path, EncoderHeader)
    check_header(path, header, sde=config.sde, latent=4)
    expected = r"e: its latent is \(4\), the parameters ask for \(5\); train it again "
    with pytest.raises(UserError, match=expected):
        check_header(path, header, latent=5)
    other = config.sde.model_copy(update={"t_min": 2e-3})
    with pytest.raises(UserError, match=r"its sde is \(.*t_min=0.001 .*\(.*t_min=0.002 "):
        check_header(path, header, sde=other)


@pytest.mark.parametrize("size", [0, 1000])
def test_full_disk_leaves_the_former_weights(tmp_path: Path, size: int) -> None:
    """Catches a traceback of safetensors, good weights lost to half of the new, partial files."""
    network = write_prior(tmp_path / "p", tiny_config())
    before = listing(tmp_path)
    assert list(before) == ["p"]
    header = read_header(tmp_path / "p", PriorHeader)
    message = r"p: cannot be written \(.*\); free some space"
    with disk_of(size), pytest.raises(UserError, match=message):
        save_weights(tmp_path / "p", network, header)
    assert listing(tmp_path) == before


def test_weights_that_say_nothing_of_the_largest_time_mean_one(tmp_path: Path) -> None:
    """Catches weights of before that are refused, and headers that such readers would refuse."""
    config = tiny_config()
    write_prior(tmp_path / "p", config)
    with safe_open(tmp_path / "p", framework="pt") as file:
        assert "t_max" not in json.loads(file.metadata()["scorevae"])["sde"]
    assert load_prior(tmp_path / "p").sde.t_max == 1
    short = config.model_copy(update={"sde": config.sde.model_copy(update={"t_max": 0.9})})
    write_prior(tmp_path / "short", short)
    assert load_prior(tmp_path / "short").sde.t_max == 0.9
