"""The command ``scorevae``: codes, pictures and facts from the shell."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet

from scorevae import ScoreVAE
from scorevae.commands.main import main

MODEL = ["--model", "models/digits", "--device", "cpu"]


def call(*words: str | Path) -> Result:
    """One call, in the current folder."""
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def pictures(workspace: Path) -> Path:
    """Five pictures of the data set in two folders, and what is none."""
    stored = np.load("data/digits/test_images.npy")[:5]
    for number, image in enumerate(stored):
        folder = Path("pictures") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    Path("pictures/notes.txt").write_text("none")
    return Path("pictures")


def expected_means() -> dict[str, np.ndarray]:
    """The codes by the pictures' names, from Python."""
    x = np.load("data/digits/test_images.npy")[:5].transpose(0, 3, 1, 2)
    means = ScoreVAE.load("models/digits", device="cpu").encode(torch.from_numpy(x) / 255).mean
    return {f"{number}.png": row.numpy() for number, row in enumerate(means)}


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
def test_codes_stand_beside_the_names(pictures: Path, suffix: str) -> None:
    """Catches rows in another order than names, in batches above all; a variance for a mean."""
    out = f"codes.{suffix}"
    done = call("encode", pictures, "--out", out, *MODEL, "--batch", "2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1]) == {
        "images": 5, "latents": 4, "written": out,
    }  # fmt: skip
    if suffix == "npz":
        found = np.load(out)
        rows = dict(zip(found["names"], found["mean"], strict=True))
    elif suffix == "csv":
        with open(out, newline="") as file:
            table = list(csv.DictReader(file))
        rows = {r["name"]: np.array([float(r[f"mean_{i}"]) for i in range(4)]) for r in table}
    else:
        table = parquet.read_table(out).to_pylist()
        rows = {r["name"]: np.array([r[f"mean_{i}"] for i in range(4)]) for r in table}
    expected = expected_means()
    assert {Path(name).name for name in rows} == expected.keys()
    for name, row in rows.items():  # float32 networks in batches of another size
        np.testing.assert_allclose(row, expected[Path(name).name], rtol=1e-4, atol=1e-5)


def test_archives_and_single_pictures_are_read(pictures: Path) -> None:
    """Catches names that do not say where in an archive, and pictures that are left out."""
    with zipfile.ZipFile("some.zip", "w") as archive:
        archive.write(pictures / "a/0.png", "inner/0.png")
    done = call("encode", "some.zip", pictures / "b/1.png", "--out", "codes.npz", *MODEL)
    assert done.exit_code == 0, done.output
    assert list(np.load("codes.npz")["names"]) == ["some.zip/inner/0.png", "pictures/b/1.png"]


def test_pictures_come_out(pictures: Path) -> None:
    """Catches images of another seed or scale than Python's, and names that write over another."""
    done = call("reconstruct", pictures, "--out", "out", *MODEL)
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "00000_0.png", "00001_2.png", "00002_4.png", "00003_1.png", "00004_3.png",
    ]  # fmt: skip
    for command, count in ((("sample", "--count", "3"), 3), (("sample", "--prior"), 16)):
        assert call(*command, "--out", f"s{count}", *MODEL).exit_code == 0
        assert len(list(Path(f"s{count}").glob("*.png"))) == count
    ends = pictures / "a/0.png", pictures / "b/1.png"
    assert call("interpolate", *ends, "--steps", "4", "--out", "line", *MODEL).exit_code == 0
    drawn = ScoreVAE.load("models/digits", device="cpu").sample(3)
    found = np.stack([np.asarray(Image.open(f"s3/{i:05d}.png")) for i in range(3)])
    assert np.abs(found - drawn[:, 0].numpy() * 255).max() <= 1  # rounded, one way or the other
    assert len(list(Path("line").glob("*.png"))) == 4


def test_info_says_what_is_there(workspace: Path) -> None:
    """Catches a count of tensors for one of parameters, and a folder without weights."""
    shutil.rmtree("models/digits/variants", ignore_errors=True)
    found = json.loads(call("info", "models/digits", "--json").output)
    assert set(found) == {f"models/digits/{n}.safetensors" for n in ("prior", "encoder", "vae")}
    model = ScoreVAE.load("models/digits", device="cpu")
    said = found["models/digits/encoder.safetensors"]
    assert (said["kind"], said["latent"]) == ("encoder", 4)
    assert said["parameters"] == sum(v.numel() for v in model.encoder.state_dict().values())
    refused = call("info", "data")
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["encode", "gone.png", "--out", "a.npz"], "gone.png: no such file or folder"),
        (["encode", "data", "--out", "a.npz"], "data: no image"),
        (["encode", "pictures", "--out", "a.txt"], "a.txt ends in none of .npz, .csv, .parquet"),
        (["encode", "large.png", "--out", "a.npz"], "large.png: 9×9 grey, the model's images are"),
        (["encode", "broken.png", "--out", "a.npz"], "broken.png: "),
        (["sample", "--out", "s", "--device", "gpu"], "gpu"),
        (["sample", "--out", "s", "--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_answered_in_a_line(pictures: Path, words: list, expected: str) -> None:
    """Catches a traceback, and half a file left behind."""
    Image.new("L", (9, 9)).save("large.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n")
    model = [] if "--model" in words else ["--model", "models/digits"]
    refused = call(*words, *model)
    assert refused.exit_code == 1
    assert expected in refused.output
    assert refused.output.strip().splitlines()[-1].startswith("Error: ")
    assert not Path("a.npz").exists()


def test_the_preset_names_the_model(pictures: Path) -> None:
    """Catches a default that is another preset's, and none that asks for a name."""
    assert call("sample", "--count", "1", "--out", "s").exit_code == 0
    Path("params.yaml").unlink()
    refused = call("sample", "--out", "s")
    assert "--model: not given, and no params.yaml here" in refused.output


def test_help_names_every_command() -> None:
    """Catches a command that is not reachable; and a version that is not the package's."""
    text = call("--help").output
    names = ["encode", "reconstruct", "sample", "interpolate", "info", "sync", "rate-distortion"]
    assert all(name in text for name in [*names, "export", "import-prior", "convert-edm"])
    assert call("--version").output.startswith("scorevae, version ")
