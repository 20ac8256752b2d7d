"""Hooks of mkdocs: README.md is the first page, links out of docs/ lead to the repository."""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 (mkdocs' own)
    """Add README.md, seen from docs/."""
    from mkdocs.structure.files import File

    text = LINK.sub(lambda link: f"]({_from_docs(link[1])})", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=text))
    return files


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def on_page_markdown(markdown: str, **others: Any) -> str:  # noqa: ANN401
    """What is not in docs/ is on the forge, of which a workflow knows the address."""
    del others
    return LINK.sub(lambda link: _outside(link[0], link[1]), markdown)


def _outside(whole: str, target: str) -> str:
    if not target.startswith("../") and not target.endswith(".ipynb"):
        return whole
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    path = target.removeprefix("../") if target.startswith("../") else f"docs/{target}"
    return f"]({server}/{name}/blob/main/{path})" if server and name else "](#)"
