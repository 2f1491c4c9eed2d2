"""Tables in markdown, and their places in the pages of docs/."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amsgrad_jax.demo.report import save_figure

DOCS = Path(__file__).parent.parent / "docs"


def table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [title, ["---"] * len(title), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def refresh(page: str, tables: Mapping[str, str]) -> str:
    """The text of a page with its tables replaced: what stands between a mark and its end."""
    for name, new in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        page, found = re.subn(pattern, f"{begin}{new}\n{end}", page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"expected one block {begin.strip()!r} in the page, found {found}")
    return page


def publish(
    page: str,
    name: str,
    results: Mapping[str, Any],
    tables: Mapping[str, str],
    figures: Mapping[str, Any],
) -> None:
    """Writes results and figures into docs/, and refreshes the tables of a page there."""
    path = DOCS / page
    refreshed = refresh(path.read_text(), tables)  # raises before anything is written
    (DOCS / f"{name}.json").write_text(json.dumps(results) + "\n")
    for figure, drawn in figures.items():
        save_figure(DOCS / figure, drawn)
    path.write_text(refreshed)
