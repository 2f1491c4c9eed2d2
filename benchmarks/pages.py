"""Tables in markdown, and their places in the pages of docs/."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
