"""Dates the version of pyproject.toml in the changelog and in CITATION.cff: what is new is out."""

import datetime
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
UNRELEASED = "## [Unreleased]\n"


def main(date: str) -> None:
    datetime.date.fromisoformat(date)  # raises
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog, citation = ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"
    old = changelog.read_text()
    if f"## [{version}]" in old:
        sys.exit(f"CHANGELOG.md has a date for {version} already: raise the version first")
    new = old.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {date}\n", 1)
    if new == old:
        sys.exit(f"CHANGELOG.md has no heading {UNRELEASED.strip()!r}")
    changelog.write_text(new.replace("Nothing is released yet: all of this will be 0.1.0.\n\n", ""))
    dated = re.sub(r"^date-released: .*\n", "", citation.read_text(), flags=re.MULTILINE)
    lines = f"version: {version}\ndate-released: {date}\n"
    citation.write_text(re.sub(r"^version: .*\n", lines, dated, flags=re.MULTILINE))


if __name__ == "__main__":
    main(sys.argv[1])
