"""perceptual: which trunk LPIPS runs on, and what it is fed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import lpips
import pytest
import torch
from oracles import seeded
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from scorevae.config import LPIPSConfig
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation import lpips as perceptual
from scorevae.evaluation.lpips import load_lpips, prepare_trunks
from scorevae.runtime import published as pretrained
from scorevae.runtime.files import sha256
from scorevae.runtime.published import WeightsFile

TORCHVISION = pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained' is deprecated:UserWarning",
    "ignore:Arguments other than a weight enum:UserWarning",
)
Download = Callable[..., None]


def images(count: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Random images in [0, 1]."""
    return torch.rand(count, channels, size, size, generator=seeded(seed))


def squeeze(**changes: object) -> LPIPSConfig:
    """The smallest net, whose trunk is looked for in TORCH_HOME and not required."""
    values = {"net": "squeeze", "trunk": None, "required": False}
    return LPIPSConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    """Random weights in torchvision's shapes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return squeezenet1_1(weights=None).state_dict()


def announce(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make a file's content the official trunk of the smallest net."""
    official, prefix = perceptual.trunk_file, sha256(path)[:8]

    def found(net: str) -> WeightsFile:
        if net != "squeeze":
            return official(net)
        return WeightsFile("https://invalid.example/s.pth", "squeeze-0000.pth", prefix)

    monkeypatch.setattr(perceptual, "trunk_file", found)


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: every attempt to fetch is noted and fails."""
    tried = []

    def refuse(url: str, *_: object, **__: object) -> None:
        tried.append(url)
        raise URLError("no network")

    monkeypatch.setattr(pretrained, "download_url_to_file", refuse)
    return tried


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: dict[str, Tensor]) -> Path:
    """A file of the user's with the official checksum."""
    torch.save(trunk, tmp_path / "own.pth")
    announce(monkeypatch, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def status(folder: Path) -> dict[str, str]:
    return json.loads((folder / "lpips.json").read_text())


# --- the files that torchvision names --------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "name", "prefix"),
    [
        ("alex", "alexnet-owt-7be5be79.pth", "7be5be79"),
        ("vgg", "vgg16-397923af.pth", "397923af"),
        ("squeeze", "squeezenet1_1-b8a52dc0.pth", "b8a52dc0"),
    ],
)
def test_trunks_are_those_of_the_lpips_authors(net: str, name: str, prefix: str) -> None:
    """Catches torchvision's newer weights, under which LPIPS is another number."""
    expected = WeightsFile(f"https://download.pytorch.org/models/{name}", name, prefix)
    assert perceptual.trunk_file(net) == expected


# --- from torchvision's file to the network --------------------------------------------------


@TORCHVISION
@pytest.mark.parametrize("zipped", [True, False])
def test_distance_is_that_of_the_trunk_loaded_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: dict[str, Tensor], zipped: bool
) -> None:
    """Catches layers in each other's place, random weights, and heads left untrained.

    torchvision's older files are parameters in PyTorch's format of before 2020.
    """
    stored = trunk if zipped else {k: nn.Parameter(v) for k, v in trunk.items()}
    torch.save(stored, tmp_path / "own.pth", _use_new_zipfile_serialization=zipped)
    announce(monkeypatch, tmp_path / "own.pth")
    prepare_trunks(squeeze(trunk=str(tmp_path / "own.pth")), 32, tmp_path / "lpips")
    network = load_lpips(tmp_path / "lpips", "squeeze")
    by_hand = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)  # with trained heads
    for name, weight in by_hand.net.named_parameters():
        weight.data = trunk["features." + name.partition(".")[2]]
    x, y = images(3), images(3, seed=1)
    with torch.no_grad():
        expected = by_hand.eval()(2 * x - 1, 2 * y - 1)
        assert torch.equal(network(2 * x - 1, 2 * y - 1), expected)
    assert expected.min() > 0
    # a float32 sum of three, against a mean
    mean = expected.mean().item()
    assert perceptual.distance(network, x, y) == pytest.approx(mean, rel=3 * 2**-23)


def test_network_is_frozen(tmp_path: Path, own: Path) -> None:
    """Catches dropout in the heads, which makes every distance another one, and a graph."""
    prepare_trunks(squeeze(trunk=str(own)), 32, tmp_path / "lpips")
    network = load_lpips(tmp_path / "lpips", "squeeze")
    assert not any(module.training for module in network.modules())
    assert not any(weight.requires_grad for weight in network.parameters())


def test_folder_says_what_it_holds(tmp_path: Path, own: Path) -> None:
    """Catches the trunk's classifier kept, a status without its checksum, and stray files."""
    words = prepare_trunks(squeeze(trunk=str(own)), 32, tmp_path / "lpips")
    found = {path.name for path in (tmp_path / "lpips").iterdir()}
    assert found == {"lpips.json", "squeeze.safetensors"}
    assert list(status(tmp_path / "lpips")) == ["squeeze", "vgg"]
    assert status(tmp_path / "lpips")["squeeze"] == f"sha256 {sha256(own)}"
    assert f"lpips squeeze sha256 {sha256(own)}" in words
    assert (tmp_path / "lpips/squeeze.safetensors").stat().st_size < own.stat().st_size - 2e6


def test_paper_net_is_prepared_once(tmp_path: Path, downloads: list[str]) -> None:
    """Catches the paper's VGG left out, or fetched twice where it is the preset's own."""
    prepare_trunks(squeeze(), 32, tmp_path / "lpips")
    assert list(status(tmp_path / "lpips")) == ["squeeze", "vgg"]
    prepare_trunks(squeeze(net="vgg"), 32, tmp_path / "lpips")
    assert list(status(tmp_path / "lpips")) == ["vgg"]
    assert [Path(url).name.partition("-")[0] for url in downloads] == [
        "squeezenet1_1",
        "vgg16",
        "vgg16",
    ]


# --- where the file comes from ---------------------------------------------------------------


def test_file_in_torch_home_is_used(tmp_path: Path, own: Path, downloads: list[str]) -> None:
    """Catches a file that is fetched although torchvision has it already."""
    checkpoints = tmp_path / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    own.rename(checkpoints / "squeeze-0000.pth")
    prepare_trunks(squeeze(required=True), 32, tmp_path / "lpips")
    assert status(tmp_path / "lpips")["squeeze"].startswith("sha256 ")
    assert not any("invalid.example" in url for url in downloads)


def test_download_goes_to_torch_home(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a fetch without checksum, and one that the next preset has to repeat."""
    calls = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(target).write_bytes(own.read_bytes())

    monkeypatch.setattr(perceptual, "PAPER_NET", "squeeze")
    monkeypatch.setattr(pretrained, "download_url_to_file", fetch)
    for _ in range(2):
        prepare_trunks(squeeze(), 32, tmp_path / "lpips")
        assert status(tmp_path / "lpips") == {"squeeze": f"sha256 {sha256(own)}"}
    assert calls == [("https://invalid.example/s.pth", sha256(own)[:8])]


def test_trunk_is_seen_from_the_repository(tmp_path: Path, own: Path, dvc_root: Path) -> None:
    """Catches a relative path looked up in the temporary copy in which DVC works."""
    assert dvc_root == own.parent
    prepare_trunks(squeeze(trunk=own.name), 32, tmp_path / "lpips")
    assert status(tmp_path / "lpips")["squeeze"].startswith("sha256 ")


def test_absent_trunk_is_named(tmp_path: Path) -> None:
    """Catches a wrong path that is answered by a download, or by null."""
    with pytest.raises(UserError, match=r"lpips.trunk: 'nowhere.pth' does not exist"):
        prepare_trunks(squeeze(trunk="nowhere.pth"), 32, tmp_path / "lpips")
    with pytest.raises(UserError, match=r"lpips.trunk: .* is no file; name one, or null"):
        prepare_trunks(squeeze(trunk=str(tmp_path)), 32, tmp_path / "lpips")
    assert not (tmp_path / "lpips").exists()


# --- files that are not the trunk ------------------------------------------------------------


@pytest.mark.parametrize("mine", [True, False])
def test_wrong_checksum(tmp_path: Path, own: Path, mine: bool) -> None:
    """Catches an incomplete or foreign file under which LPIPS would be another number."""
    if not mine:
        checkpoints = tmp_path / "torch/hub/checkpoints"
        checkpoints.mkdir(parents=True)
        own = own.rename(checkpoints / "squeeze-0000.pth")
    expected = sha256(own)[:8]
    own.write_bytes(own.read_bytes()[:-1])
    with pytest.raises(UserError) as error:
        prepare_trunks(squeeze(trunk=str(own) if mine else None), 32, tmp_path / "lpips")
    message = error.value.message
    assert message.startswith(f"{own}: its SHA-256 is {sha256(own)}, that of squeeze-0000.pth ")
    assert f" begins with {expected}: " in message
    assert not (tmp_path / "lpips").exists()


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pickle that is trusted: eight digits of a checksum can be forged."""
    payload, ran = tmp_path / "own.pth", tmp_path / "ran"
    torch.save({"features.0.weight": Payload(ran)}, payload)
    announce(monkeypatch, payload)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        prepare_trunks(squeeze(trunk=str(payload)), 32, tmp_path / "lpips")
    assert not ran.exists()
    assert not (tmp_path / "lpips").exists()
    torch.load(payload, weights_only=False)
    assert ran.exists()  # else this test shows nothing


# --- without a trunk -------------------------------------------------------------------------


def test_missing_trunk_is_a_status(tmp_path: Path) -> None:
    """Catches random weights in place of the trunk, or a pipeline that ends without network."""
    words = prepare_trunks(squeeze(), 32, tmp_path / "lpips", key="presets.mine.lpips")
    for net, name in (("squeeze", "squeezenet1_1-b8a52dc0.pth"), ("vgg", "vgg16-397923af.pth")):
        reason = status(tmp_path / "lpips")[net]
        assert reason.startswith(f"unavailable: the {net} trunk {name} cannot be downloaded (")
        assert "no network" in reason
        assert "presets.mine.lpips.trunk" in reason
        assert "TORCH_HOME" in reason
        assert f"lpips {net} {reason}" in words
        with pytest.raises(Unavailable, match=f"^lpips {net} unavailable: the {net} trunk "):
            load_lpips(tmp_path / "lpips", net)


@pytest.mark.parametrize("size", [8, 32])
def test_required_trunk_stops_at_once(tmp_path: Path, size: int) -> None:
    """Catches a null at the end of a week of training."""
    with pytest.raises(UserError, match=r"\. This preset requires LPIPS: set .*lpips\.required"):
        prepare_trunks(squeeze(required=True), size, tmp_path / "lpips")
    assert not (tmp_path / "lpips").exists()


def test_only_the_preset_s_own_net_is_required(tmp_path: Path, own: Path) -> None:
    """Catches a preset that stops for the trunk of the paper's tables."""
    prepare_trunks(squeeze(trunk=str(own), required=True), 32, tmp_path / "lpips")
    assert status(tmp_path / "lpips")["vgg"].startswith("unavailable: ")


@pytest.mark.parametrize("error", [URLError("offline"), OSError("full"), RuntimeError("hash")])
def test_every_failed_download_is_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a traceback for a full disk or a download that was cut short."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pretrained, "download_url_to_file", refuse)
    prepare_trunks(squeeze(), 32, tmp_path / "lpips")
    assert str(error) in status(tmp_path / "lpips")["squeeze"]


def test_torch_home_that_cannot_be_written_is_a_status(tmp_path: Path) -> None:
    """Catches a traceback where the home folder is read-only: LPIPS was not required."""
    (tmp_path / "torch").write_text("a file where the folder should be")
    prepare_trunks(squeeze(), 32, tmp_path / "lpips")
    assert status(tmp_path / "lpips")["squeeze"].startswith("unavailable: the squeeze trunk ")


def test_small_images_have_no_lpips(tmp_path: Path, own: Path, downloads: list[str]) -> None:
    """Catches a trunk that fails on 8×8 pixels after all training, or is fetched for nothing."""
    prepare_trunks(squeeze(trunk=str(own)), 31, tmp_path / "lpips")
    reason = "unavailable: images of 31 pixels are under the 32 that its trunk needs"
    assert status(tmp_path / "lpips") == {"squeeze": reason, "vgg": reason}
    assert downloads == []
    with pytest.raises(Unavailable, match="lpips squeeze unavailable: images of 31 pixels"):
        load_lpips(tmp_path / "lpips", "squeeze")


def test_net_that_was_not_prepared(tmp_path: Path) -> None:
    """Catches an evaluation with another net than download prepared."""
    prepare_trunks(squeeze(), 8, tmp_path / "lpips")
    with pytest.raises(Unavailable, match="lpips alex unavailable: not asked for"):
        load_lpips(tmp_path / "lpips", "alex")


@pytest.mark.parametrize("damage", ["no folder", "no status", "no trunk", "no json", "cut off"])
def test_damaged_folder(tmp_path: Path, own: Path, damage: str) -> None:
    """Catches a traceback, or null, where the stage download has not finished."""
    folder = tmp_path / "lpips"
    if damage != "no folder":
        prepare_trunks(squeeze(trunk=str(own)), 32, folder)
    match damage:
        case "no status":
            (folder / "lpips.json").unlink()
        case "no json":
            (folder / "lpips.json").write_text("{")
        case "no trunk":
            (folder / "squeeze.safetensors").unlink()
        case "cut off":
            file = folder / "squeeze.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"lpips: no LPIPS trunk \(.*\); run the stage download"):
        load_lpips(folder, "squeeze")


# --- the distance ----------------------------------------------------------------------------


class Recorder(nn.Module):
    """Stands for LPIPS: keeps what it is given, answers the mean absolute difference."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        self.seen.append((first, second))
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize(("unit_range", "scale", "shift"), [(False, 2, -1), (True, 1, 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_distance_prepares_images(unit_range: bool, scale: int, shift: int, channels: int) -> None:
    """Catches a wrong range, grey fed as it is, and chunks that count alike or are lost."""
    x, y = (images(230, channels=channels, size=2, seed=seed).double() for seed in (0, 1))
    network = Recorder()
    # The scale multiplies differences; float64 rounding of a mean of 920 terms or more.
    expected = scale * (x - y).abs().mean().item()
    found = perceptual.distance(network, x, y, unit_range=unit_range)
    assert found == pytest.approx(expected, rel=1e-12)
    for given, original in zip(zip(*network.seen, strict=True), (x, y), strict=True):
        assert torch.equal(torch.cat(given), (scale * original + shift).expand(-1, 3, -1, -1))
    assert max(len(first) for first, _ in network.seen) == 100


def test_values_outside_are_not_clamped() -> None:
    """Catches a distance that forgives reconstructions outside [0, 1]."""
    network, x = Recorder(), images(2, size=2)
    assert perceptual.distance(network, x, x + 3) == pytest.approx(6, rel=1e-6)  # float32


@TORCHVISION
def test_chunks_do_not_change_the_mean(trunk: dict[str, Tensor]) -> None:
    """Catches a mean of means, whose last chunk of 3 would weigh as much as one of 100."""
    network = perceptual.build("squeeze", trunk)
    x, y = images(103), images(103, seed=1)
    y[100:] = x[100:]  # a chunk at distance zero
    first = perceptual.distance(network, x[:100], y[:100])
    assert first > 0
    # One float32 sum over 100 images in both cases.
    assert perceptual.distance(network, x, y) == pytest.approx(first * 100 / 103, rel=1e-5)
    assert perceptual.distance(network, x, x) == 0
