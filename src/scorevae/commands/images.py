"""Pictures that are named in a shell, and pictures that come out."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from scorevae.errors import UserError

if TYPE_CHECKING:
    from scorevae.autoencoders.score_vae import ScoreVAE
    from scorevae.shapes import Images


def batches(
    paths: tuple[Path, ...], model: "ScoreVAE", *, resize: bool
) -> "Iterator[tuple[list[str], Images]]":
    """Names and images, as many at a time as the model takes; a bar counts them.

    Raises:
        UserError: a path leads nowhere, there is no image, or one cannot be used.
    """
    import torch

    from scorevae.data.given import to_images
    from scorevae.runtime.progress import progress

    names: list[str] = []
    rows: list[Images] = []
    done = 0
    with TemporaryDirectory() as scratch, progress("images", 0, None) as report:
        for name, at in _found(paths, Path(scratch)):
            names.append(name)
            rows.append(to_images(at, model.image, resize=resize, name=name))
            done += 1
            if len(rows) == model.batch:
                yield names, torch.cat(rows)
                report(done)
                names, rows = [], []
        if not done:
            raise UserError(f"{', '.join(map(str, paths))}: no image; name pictures")
        if rows:
            yield names, torch.cat(rows)
            report(done)


def _found(paths: tuple[Path, ...], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Each picture's name and where it lies until the next one is asked for."""
    from scorevae.data.sources.trees import ARCHIVES, image_files

    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name pictures that are there")
        if path.is_dir() or path.name.lower().endswith(ARCHIVES):
            files = image_files(path, scratch, Counter())
            yield from ((f"{path}/{file.name}", file.path) for file in files)
        else:
            yield str(path), path


def save_pictures(folder: Path, names: list[str], images: "Images") -> None:
    """Write images in [0, 1] as PNG files of these names."""
    from torchvision.transforms.functional import to_pil_image

    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=True):
        to_pil_image(image).save(folder / f"{name}.png")
