"""Settings of the documentation site, which `make docs` builds without the network.

Sphinx with MyST-NB and the book theme, as jax, optax and flax have it: Markdown, notebooks and
docstrings become pages that can refer to each other, and a reference that fails is an error.
"""

import amsgrad_jax

project = "amsgrad-jax"
author = "The amsgrad-jax authors"
release = version = amsgrad_jax.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google style
    "sphinx-mathjax-offline",  # MathJax in the site itself: it needs no other server
]
exclude_patterns = ["_build"]

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
html_theme_options = {"navbar_persistent": []}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# The search finds more.
html_use_index = html_domain_indices = False
