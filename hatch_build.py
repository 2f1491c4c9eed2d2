"""The README as the description of the package, where the repository is not around it."""

import pathlib
import re
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def outside(readme: str, root: pathlib.Path, repository: str | None) -> str:
    """The text with links into the repository; without an address only their texts are left."""

    def link(match: re.Match[str]) -> str:
        image, text, path = match.groups()
        if not (root / path.partition("#")[0]).exists():  # not a path
            return match[0]
        if repository is None:
            return "" if image else text
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/main/{path})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, readme)


class Description(MetadataHookInterface):
    """Hatchling asks this for the fields that pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        root = pathlib.Path(self.root)
        text = (root / "README.md").read_text()
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": outside(text, root, repository),
        }
