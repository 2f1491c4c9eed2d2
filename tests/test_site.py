"""What is read outside of Python: notebooks, links, and what is told about versions."""

import importlib.util
import json
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def script(name):
    """A program of .ci/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f".ci/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook, kind):
    """The sources of the cells of that kind."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_first_installs_what_it_needs(notebook):
    assert cells(notebook, "code")[0] == script("notebooks").install_cell(), (
        "write it with: python .ci/notebooks.py --inplace notebooks/*.ipynb"
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_no_files_beside_it(notebook):
    code = "\n".join(cells(notebook, "code"))
    assert not re.search(r"\bopen\(|read_text|np\.load\([\"']|\.\./", code)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_links_of_a_page_hold_in_the_repository(page):
    text = "\n".join(cells(page, "markdown")) if page in NOTEBOOKS else page.read_text()
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), link


def test_the_page_of_versions_has_those_of_the_package():
    page = (ROOT / "docs/stability.md").read_text()
    for dependency in PROJECT["dependencies"]:
        name, lowest = dependency.split(">=")
        assert re.search(rf"^\| [a-z, ]*\b{name}\b[a-z, ]* \| {re.escape(lowest)} \|", page, re.M)
    assert f"| Python | {PROJECT['requires-python'].removeprefix('>=')} |" in page
    for example in PROJECT["optional-dependencies"]["examples"]:
        if ">=" in example:
            assert "{} {} or later".format(*example.split(">=")) in " ".join(page.split())


def test_changelog_and_citation_are_of_this_version():
    version = PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[Unreleased\]$", changelog, re.MULTILINE)
    released = f"## [{version}] - " in changelog
    assert released != (f"all of this will be {version}" in changelog)
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE)
    assert released == ("date-released: " in citation)


def test_dates_are_written_once(tmp_path, monkeypatch):
    dates = script("date")
    for name in ("CHANGELOG.md", "CITATION.cff", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    project = tmp_path / "pyproject.toml"  # of a version that has no date yet
    project.write_text(project.read_text().replace(f'"{PROJECT["version"]}"', '"9.8.7"'))
    monkeypatch.setattr(dates, "ROOT", tmp_path)
    dates.main("2030-01-02")
    assert "## [9.8.7] - 2030-01-02" in (tmp_path / "CHANGELOG.md").read_text()
    assert "date-released: 2030-01-02" in (tmp_path / "CITATION.cff").read_text()
    with pytest.raises(SystemExit, match="has a date"):
        dates.main("2030-01-03")
    with pytest.raises(ValueError, match="isoformat"):
        dates.main("soon")


def test_links_of_the_description_hold_outside_of_the_repository():
    pytest.importorskip("hatchling", reason="the build backend, which pip brings along")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "![A](docs/online.png) [B](docs/memory.md#c) [D](https://e.org) `f[g](h)`"
    assert module.outside(text, ROOT, None) == " B [D](https://e.org) `f[g](h)`"
    assert module.outside(text, ROOT, "https://r") == (
        "![A](https://r/raw/main/docs/online.png) [B](https://r/blob/main/docs/memory.md#c)"
        " [D](https://e.org) `f[g](h)`"
    )
