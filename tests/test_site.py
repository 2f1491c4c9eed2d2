"""What is read outside of Python: notebooks that one can be sent, and links that lead somewhere."""

import importlib.util
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
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
