"""Every public name has its place in the API reference."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PUBLIC = [
    path
    for path in [*ROOT.glob("amsgrad_jax/*.py"), *ROOT.glob("amsgrad_jax/*/__init__.py")]
    if not path.stem.startswith("_") or path.stem == "__init__"
    if path.parent.name != "demo"  # a program, and no module to import from
]


def public_names(path):
    """What a module defines, or passes on as `import name as name`, without an underscore."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield name
            case ast.ImportFrom():
                yield from (alias.name for alias in node.names if alias.name == alias.asname)


@pytest.mark.parametrize(
    "path", PUBLIC, ids=lambda path: path.parent.name if path.stem == "__init__" else path.stem
)
def test_every_public_name_has_an_entry(path):
    page = path.parent.name if path.stem == "__init__" else path.stem
    text = (ROOT / f"docs/api/{page}.rst").read_text()
    entries = re.findall(r"^\.\. auto(?:class|data|function):: (\w+)$", text, re.MULTILINE)
    names = [name for name in public_names(path) if not name.startswith("_")]
    assert names
    assert sorted(entries) == sorted(names)
