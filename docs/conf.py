"""Settings of the documentation site, which `make docs` builds without the network.

Sphinx with MyST-NB and the book theme, as jax, optax and flax have it: Markdown, notebooks and
docstrings become pages that can refer to each other, and a reference that fails is an error.
"""

import ast
import pathlib
import re
import shutil
import tomllib
from typing import Any

import amsgrad_jax

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "amsgrad-jax"
author = "The amsgrad-jax authors"
release = version = amsgrad_jax.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",  # the list of all names on the first page of the reference
    "sphinx.ext.napoleon",  # docstrings in Google style
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # MathJax in the site itself: it needs no other server
]
exclude_patterns = ["_build"]
autosummary_generate = False  # only the list: the pages in api/ are kept by hand

myst_enable_extensions = ["dollarmath"]
# Links to [page](page.md#section), for headings up to the third level.
myst_heading_anchors = 3
# As they were committed; CI executes them elsewhere.
nb_execution_mode = "off"
nb_merge_streams = True

# A name in a docstring that leads nowhere is a warning, and `make docs` fails on warnings.
nitpicky = True
# What other packages define is documented elsewhere, where a build without the network cannot look.
nitpick_ignore_regex = [(r"py:.*", r"(collections|jax|typing)\..*")]
# Types would fill the signatures (`jax.typing.ArrayLike` alone is a union of eight). What an
# argument may be is said in words below.
autodoc_typehints = "none"
# As in the source: `report=max_report`, not the address of a function.
autodoc_preserve_defaults = True
autodoc_default_options = {"no-value": True}
# For phones: one argument a line where a signature is long, and the title names the module.
python_maximum_signature_line_length = 80
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = f"amsgrad-jax {release}"
# No bar above the page: the search is in the sidebar already.
html_theme_options: dict[str, Any] = {"navbar_persistent": []}
# Links to the repository, and to edit a page there, as soon as pyproject.toml has its address.
if repository := PROJECT.get("urls", {}).get("Repository"):
    html_theme_options |= {
        "repository_branch": "main",
        "repository_url": repository,
        "use_edit_page_button": True,
        "use_repository_button": True,
    }
    html_context = {
        "edit_page_provider_name": "GitHub",
        # Copies are edited where their originals are.
        "edit_page_url_template": f"{repository}/edit/main/"
        "{% if not file_name.startswith(('examples/', 'notebooks/')) %}docs/{% endif %}"
        "{{ file_name | replace('.md', '.py') if 'examples/' in file_name else file_name }}",
    }
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# Copied is what was typed: no prompts, no output.
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = "div:not(.output) > div.highlight pre"
# The search finds more.
html_use_index = html_domain_indices = False


# Notebooks and examples stand at the top of the repository, where people look for them; the site
# has copies, which git ignores (symlinks would not do: MyST follows them and finds no page there).
def copy_into_the_site() -> None:
    for name in ("examples", "notebooks"):
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        shutil.copy2(notebook, DOCS / "notebooks")
    for example in sorted(ROOT.glob("examples/*.py")):
        source = example.read_text()
        # Its docstring says what it is: "Plain JAX: a network ...", and perhaps more below.
        title, _, sentence = ast.get_docstring(ast.parse(source)).partition(": ")
        first = source[: source.index('"""', 3)].count("\n") + 3
        page = [f"# {title}", sentence[:1].upper() + sentence[1:], f"In a clone, `{example.name}`:"]
        page.append(f"```{{literalinclude}} ../../examples/{example.name}\n:lines: {first}-\n```")
        (DOCS / "examples" / f"{example.stem}.md").write_text("\n\n".join(page) + "\n")


def follow_links(app: object, docname: str, source: list[str]) -> None:
    """Turns links that hold in the repository into those that hold in the site."""
    if docname.startswith("notebooks/"):
        source[0] = source[0].replace("](../docs/", "](../")
    else:
        source[0] = source[0].replace("](../notebooks/", "](notebooks/")
    up = "../" if docname.startswith("notebooks/") else ""
    source[0] = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", rf"]({up}examples/\1.md)", source[0])


def setup(app: Any) -> None:
    copy_into_the_site()
    app.connect("source-read", follow_links)
