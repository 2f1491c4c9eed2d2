"""Every public name has its place in the API reference, and every module says what is public."""

import importlib
import inspect
import pathlib
import re

import pytest

import amsgrad_jax

ROOT = pathlib.Path(__file__).parent.parent
PUBLIC = [
    path.stem if path.stem != "__init__" else path.parent.name
    for path in [*ROOT.glob("amsgrad_jax/*.py"), *ROOT.glob("amsgrad_jax/*/__init__.py")]
    if not path.stem.startswith("_") or path.stem == "__init__"
    if path.parent.name != "demo"  # a program, and no module to import from
]


def module_of(page):
    return importlib.import_module(page if page == "amsgrad_jax" else f"amsgrad_jax.{page}")


@pytest.mark.parametrize("page", PUBLIC)
def test_every_public_name_has_an_entry(page):
    text = (ROOT / f"docs/api/{page}.rst").read_text()
    entries = re.findall(r"^\.\. auto(?:class|data|function):: (\w+)$", text, re.MULTILINE)
    assert sorted(entries) == sorted(module_of(page).__all__)


@pytest.mark.parametrize("page", PUBLIC)
def test_the_first_page_lists_every_public_name(page):
    text = (ROOT / "docs/api/index.rst").read_text()
    name = module_of(page).__name__
    section = re.search(
        rf"^{re.escape(name)}\n-+\n(.*?)(?=^-+\n|\Z)", text, re.DOTALL | re.MULTILINE
    )
    listed = re.findall(
        r"^   (\w+)$|:data:`(\w+)`", section[1].partition(".. toctree::")[0], re.MULTILINE
    )
    assert sorted(map("".join, listed)) == sorted(module_of(page).__all__)


@pytest.mark.parametrize("page", PUBLIC)
def test_what_a_module_defines_is_public_or_has_an_underscore(page):
    module = module_of(page)
    for name in module.__all__:
        assert hasattr(module, name)
    if page not in ("amsgrad_jax", "interop"):  # whose names come from files with an underscore
        defined = {
            name
            for name, value in vars(module).items()
            if (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
            and not name.startswith("_")
        }
        assert defined <= set(module.__all__)


def test_modules_are_reachable_from_the_package():
    assert set(PUBLIC) - {"amsgrad_jax"} <= set(dir(amsgrad_jax))
    for page in set(PUBLIC) - {"amsgrad_jax"}:
        assert getattr(amsgrad_jax, page) is module_of(page)
    with pytest.raises(AttributeError, match="module 'amsgrad_jax' has no attribute 'optimiser'"):
        _ = amsgrad_jax.optimiser
