"""Models in folders that others load, on the Hugging Face hub or off it, with a card.

huggingface_hub's mixin is not used: it must be a base class, so that importing ours would import
it; it keeps the JSON values among the constructor's arguments, which are networks here, as
config.json; and it never renews a card. Names of methods and arguments are the mixin's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorevae.errors import UserError, in_a_line
from scorevae.runtime.runs import git

CARD = "README.md"
PATTERNS = ["*.safetensors", "decoding.json"]  # all that is fetched: nothing that runs code
CODE = ("src", "stages", "dvc.yaml", "params.yaml")
# What a card shows of metrics.json, with the unit where there is one.
METRICS = {
    "l2": "L2",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "paper_lpips": "LPIPS (the paper's)",
    "rate_nats": "rate, nats",
}


def fetched(
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: Path | str | None,
    local_files_only: bool,
) -> Path:
    """The folder with a model's files from the hub.

    Raises:
        UserError: there is neither such a folder nor such a model, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=PATTERNS,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:  # no network is an OSError
        raise UserError(
            f"{name}: no such folder, and it cannot be fetched from the Hugging Face hub "
            f"({_reason(error)}); correct the name, or, where there is a network, run: "
            f"hf download {name} --local-dir FOLDER, and name FOLDER"
        ) from None
    return Path(folder)


def pushed(
    folder: Path, name: str, *, private: bool | None, token: str | bool | None, message: str
) -> str:
    """Upload a folder in one commit, to a model that is made where there is none; its address.

    Raises:
        UserError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
    except Exception as error:  # noqa: BLE001 (those of the HTTP library, which has changed once)
        raise UserError(
            f"{name}: cannot be uploaded to the Hugging Face hub ({_reason(error)}); check the "
            "name and the network, and log in by: hf auth login"
        ) from None


def _reason(error: Exception) -> str:
    return in_a_line(error) or type(error).__name__


def card(
    kind: str,
    facts: Sequence[str],
    titles: Mapping[str, str],
    *,
    metrics: Path | None,
    data: Path | None,
) -> str:
    """The text of a model's card.

    Args:
        kind: the class that loads it.
        facts: what the model is, a line each.
        titles: the names of systems in ``metrics``, as they are to be printed.
        metrics: ``metrics.json`` of the run, in its repository.
        data: the prepared data set, with its ``meta.json``.

    Raises:
        UserError: a file is missing or no JSON object.
    """
    numbers = {} if metrics is None else _json(metrics)
    meta = {} if data is None else _json(data / "meta.json")
    facts = [*facts, *([] if metrics is None else _code(metrics.absolute().parent))]
    parts = [
        "---\nlibrary_name: scorevae\ntags: [scorevae, autoencoder, diffusion]\n---",
        f"# {kind}: an auto-encoder of images",
        "After *Variational Diffusion Auto-encoder* (arXiv 2304.12141), by the package scorevae. "
        "Weights are safetensors: loading them runs no code.",
        "\n".join(f"- {_line(fact)}" for fact in facts),
        f'```python\nfrom scorevae import {kind}\n\nmodel = {kind}.from_pretrained("FOLDER or hub '
        'id")\nz = model.encode("picture.png", resize=True).mean\n'
        'images = model.reconstruct("picture.png", resize=True)\n```',
        *_data(meta),
        *_numbers(numbers, titles),
    ]
    return "\n\n".join(parts) + "\n"


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); correct the path") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: no JSON object; give the file of a run")
    return tree


def _code(folder: Path) -> list[str]:
    """The commit of the run in this folder."""
    commit = git(folder, "rev-parse", "HEAD")
    if not commit:
        return []
    top = Path(git(folder, "rev-parse", "--show-toplevel"))
    changed = " with local changes" if git(top, "status", "--porcelain", "--", *CODE) else ""
    return [f"code: commit {commit}{changed}"]


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _data(meta: Mapping[str, Any]) -> list[str]:
    if not meta:
        return []
    counts = ", ".join(f"{count} {split}" for split, count in dict(meta.get("images", {})).items())
    rows = {"source": meta.get("source"), "licence": meta.get("licence"), "images": counts}
    lines = [f"- {name}: {_line(value)}" for name, value in rows.items() if value]
    return ["## Data", "\n".join(lines)]


def _numbers(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """A table with a column for each system of the run."""
    systems = {title: metrics[name] for name, title in titles.items() if name in metrics}
    if not systems:
        return []
    head = [f"| test images | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    rows = []
    for key, title in METRICS.items():
        values = [found.get(key) for found in systems.values()]
        if any(value is not None for value in values):
            cells = ["–" if value is None else f"{value:.4g}" for value in values]
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return ["## Numbers", "\n".join(head + rows)]
