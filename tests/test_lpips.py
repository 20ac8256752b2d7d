"""lpips: which trunk LPIPS runs on, and what it is fed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import lpips
import pytest
import torch
from oracles import seeded
from pictures import Evil
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from scorevae.config import LPIPSConfig
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation import lpips as evaluation
from scorevae.evaluation.lpips import load_lpips, prepare_trunks
from scorevae.runtime import published as pretrained
from scorevae.runtime.files import sha256
from scorevae.runtime.published import WeightsFile


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
    official, prefix = evaluation.trunk_file, sha256(path)[:8]

    def found(net: str) -> WeightsFile:
        if net != "squeeze":
            return official(net)
        return WeightsFile("https://invalid.example/s.pth", "squeeze-0000.pth", prefix)

    monkeypatch.setattr(evaluation, "trunk_file", found)


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
def folder(tmp_path: Path) -> Path:
    """Where the trunks are prepared."""
    return tmp_path / "lpips"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: dict[str, Tensor]) -> Path:
    """A file of the user's with the official checksum."""
    torch.save(trunk, tmp_path / "own.pth")
    announce(monkeypatch, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def keep(own: Path) -> Path:
    """Move it to where torchvision keeps it, in TORCH_HOME."""
    checkpoints = own.parent / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    return own.rename(checkpoints / "squeeze-0000.pth")


def status(folder: Path) -> dict[str, str]:
    return json.loads((folder / "lpips.json").read_text())


# --- the files that torchvision names --------------------------------------------------------


@pytest.mark.parametrize(("net", "name"), [
    ("alex", "alexnet-owt-7be5be79.pth"),
    ("vgg", "vgg16-397923af.pth"),
    ("squeeze", "squeezenet1_1-b8a52dc0.pth"),
])  # fmt: skip
def test_trunks_are_those_of_the_lpips_authors(net: str, name: str) -> None:
    """Catches torchvision's newer weights, under which LPIPS is another number."""
    url = f"https://download.pytorch.org/models/{name}"
    assert evaluation.trunk_file(net) == WeightsFile(url, name, name[-12:-4])


# --- from torchvision's file to the network --------------------------------------------------


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is:UserWarning")  # torchvision's
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_distance_is_that_of_the_trunk_loaded_by_hand(
    own: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, trunk: dict, zipped: bool
) -> None:
    """Catches layers in each other's place, random weights, heads left untrained, and dropout.

    torchvision's older files are parameters in PyTorch's format of before 2020.
    """
    stored = trunk if zipped else {k: nn.Parameter(v) for k, v in trunk.items()}
    torch.save(stored, own, _use_new_zipfile_serialization=zipped)
    announce(monkeypatch, own)
    prepare_trunks(squeeze(trunk=str(own)), 32, folder)
    network = load_lpips(folder, "squeeze")
    assert not any(module.training for module in network.modules())
    assert not any(weight.requires_grad for weight in network.parameters())
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
    assert evaluation.distance(network, x, y) == pytest.approx(mean, rel=3 * 2**-23)
    assert evaluation.distance(network, x, x) == 0


@pytest.mark.parametrize("place", ["path", "repository", "TORCH_HOME"])
def test_prepared_folder(
    folder: Path, own: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Catches a file not found, the classifier kept, no checksum, stray files, VGG required."""
    monkeypatch.setenv("DVC_ROOT", str(own.parent))
    if place == "TORCH_HOME":
        own = keep(own)
    trunk = {"path": str(own), "repository": own.name, "TORCH_HOME": None}[place]
    words = prepare_trunks(squeeze(trunk=trunk, required=True), 32, folder)
    assert {path.name for path in folder.iterdir()} == {"lpips.json", "squeeze.safetensors"}
    assert list(status(folder)) == ["squeeze", "vgg"]
    assert status(folder)["squeeze"] == f"sha256 {sha256(own)}"
    assert status(folder)["vgg"].startswith("unavailable: ")
    assert f"lpips squeeze sha256 {sha256(own)}" in words
    assert (folder / "squeeze.safetensors").stat().st_size < own.stat().st_size - 2e6
    assert not any("invalid.example" in url for url in downloads)


def test_paper_net_is_prepared_once(folder: Path, downloads: list[str]) -> None:
    """Catches the paper's VGG left out, or fetched twice where it is the preset's own."""
    for net, prepared in (("squeeze", ["squeeze", "vgg"]), ("vgg", ["vgg"])):
        downloads.clear()
        prepare_trunks(squeeze(net=net), 32, folder)
        assert list(status(folder)) == prepared
        assert len(downloads) == len(prepared)
        assert all(net in url for net, url in zip(prepared, downloads, strict=True))


# --- where the file comes from ---------------------------------------------------------------


def test_download_goes_to_torch_home(
    folder: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a fetch without checksum, and one that the next preset has to repeat."""
    calls = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(target).write_bytes(own.read_bytes())

    monkeypatch.setattr(evaluation, "PAPER_NET", "squeeze")
    monkeypatch.setattr(pretrained, "download_url_to_file", fetch)
    for _ in range(2):
        prepare_trunks(squeeze(), 32, folder)
        assert status(folder) == {"squeeze": f"sha256 {sha256(own)}"}
    assert calls == [("https://invalid.example/s.pth", sha256(own)[:8])]


def test_absent_trunk_is_named(folder: Path, tmp_path: Path) -> None:
    """Catches a wrong path that is answered by a download, or by null."""
    for trunk, reason in (("nowhere.pth", "does not exist"), (str(tmp_path), "is no file; name")):
        with pytest.raises(UserError, match=f"lpips.trunk: '{trunk}' {reason}"):
            prepare_trunks(squeeze(trunk=trunk), 32, folder)
    assert not folder.exists()


# --- files that are not the trunk ------------------------------------------------------------


@pytest.mark.parametrize("mine", [True, False])
def test_wrong_checksum(folder: Path, own: Path, mine: bool) -> None:
    """Catches an incomplete or foreign file under which LPIPS would be another number."""
    path = own if mine else keep(own)
    expected = sha256(path)[:8]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as error:
        prepare_trunks(squeeze(trunk=str(path) if mine else None), 32, folder)
    message = error.value.message
    assert message.startswith(f"{path}: its SHA-256 is {sha256(path)}, that of squeeze-0000.pth ")
    assert f" begins with {expected}: " in message
    assert not folder.exists()


def test_pickled_code_does_not_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a pickle that is trusted: eight digits of a checksum can be forged."""
    payload, ran = tmp_path / "own.pth", tmp_path / "ran"
    torch.save({"features.0.weight": Evil(ran)}, payload)
    announce(monkeypatch, payload)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        prepare_trunks(squeeze(trunk=str(payload)), 32, folder)
    assert not ran.exists()
    assert not folder.exists()
    torch.load(payload, weights_only=False)
    assert ran.exists()  # else this test shows nothing


# --- without a trunk -------------------------------------------------------------------------


def test_missing_trunk_is_a_status(folder: Path) -> None:
    """Catches random weights in place of the trunk, or a pipeline that ends without network."""
    words = prepare_trunks(squeeze(), 32, folder, key="presets.mine.lpips")
    for net, name in (("squeeze", "squeezenet1_1-b8a52dc0.pth"), ("vgg", "vgg16-397923af.pth")):
        reason = status(folder)[net]
        assert reason.startswith(f"unavailable: the {net} trunk {name} cannot be downloaded (")
        assert "no network" in reason
        assert "presets.mine.lpips.trunk" in reason
        assert "TORCH_HOME" in reason
        assert f"lpips {net} {reason}" in words
        with pytest.raises(Unavailable, match=f"^lpips {net} unavailable: the {net} trunk "):
            load_lpips(folder, net)


@pytest.mark.parametrize("size", [8, 32])
def test_required_trunk_stops_at_once(folder: Path, size: int) -> None:
    """Catches a null at the end of a week of training."""
    with pytest.raises(UserError, match=r"\. This preset requires LPIPS: set .*lpips\.required"):
        prepare_trunks(squeeze(required=True), size, folder)
    assert not folder.exists()


@pytest.mark.parametrize("error", [URLError("offline"), OSError("full"), RuntimeError("hash")])
def test_every_failed_download_is_a_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a traceback for a full disk or a download that was cut short."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pretrained, "download_url_to_file", refuse)
    prepare_trunks(squeeze(), 32, folder)
    assert str(error) in status(folder)["squeeze"]


def test_torch_home_that_cannot_be_written_is_a_status(tmp_path: Path, folder: Path) -> None:
    """Catches a traceback where the home folder is read-only: LPIPS was not required."""
    (tmp_path / "torch").write_text("a file where the folder should be")
    prepare_trunks(squeeze(), 32, folder)
    assert status(folder)["squeeze"].startswith("unavailable: the squeeze trunk ")


def test_small_images_have_no_lpips(folder: Path, own: Path, downloads: list[str]) -> None:
    """Catches a trunk that fails on 8×8 pixels after training, or is fetched for nothing."""
    prepare_trunks(squeeze(trunk=str(own)), 31, folder)
    reason = "unavailable: images of 31 pixels are under the 32 that its trunk needs"
    assert status(folder) == {"squeeze": reason, "vgg": reason}
    assert downloads == []
    with pytest.raises(Unavailable, match="lpips squeeze unavailable: images of 31 pixels"):
        load_lpips(folder, "squeeze")
    with pytest.raises(Unavailable, match="lpips alex unavailable: not asked for"):
        load_lpips(folder, "alex")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    "no status": lambda folder: (folder / "lpips.json").unlink(),
    "no trunk": lambda folder: (folder / "squeeze.safetensors").unlink(),
    "no json": lambda folder: (folder / "lpips.json").write_text("{"),
    "cut off": lambda folder: os.truncate(folder / "squeeze.safetensors", 1000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_folder(folder: Path, own: Path, damage: Callable[[Path], object]) -> None:
    """Catches a traceback, or null, where the stage download has not finished."""
    prepare_trunks(squeeze(trunk=str(own)), 32, folder)
    damage(folder)
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
    """Catches a wrong range, values outside clamped, grey as it is, chunks that count alike."""
    x, y = (3 * images(230, channels=channels, size=2, seed=i).double() - 1 for i in (0, 1))
    network = Recorder()
    # The scale multiplies differences; float64 rounding of a mean of 920 terms or more.
    expected = scale * (x - y).abs().mean().item()
    found = evaluation.distance(network, x, y, unit_range=unit_range)
    assert found == pytest.approx(expected, rel=1e-12)
    for given, original in zip(zip(*network.seen, strict=True), (x, y), strict=True):
        assert torch.equal(torch.cat(given), (scale * original + shift).expand(-1, 3, -1, -1))
    assert max(len(first) for first, _ in network.seen) == 100
