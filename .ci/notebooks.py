"""Executes notebooks, each copied alone into an empty folder, as somebody has it who was sent one.

Fails on an error, and on whatever goes to stderr: a warning, say. With --inplace it first writes
the cell that installs the package, and then keeps the outputs.
"""

import argparse
import pathlib
import sys
import tempfile
import time
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent

# The first code of every notebook. find_spec, not import: one of them sets XLA_FLAGS before jax.
INSTALL = """\
# Installs the package where it is missing, in Colab for one.
import importlib.util

SOURCE = "{source}"  # where pip finds it: git+https://... or file:///the/clone
if importlib.util.find_spec("amsgrad_jax") is None:
    if not SOURCE:
        raise ModuleNotFoundError("run pip install '.[demo]' in a clone, or fill in SOURCE above")
    %pip install --quiet "amsgrad_jax[demo] @ {{SOURCE}}"\
"""


def install_cell() -> str:
    """The source of that cell, with the address of the repository if pyproject.toml has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project.get("urls", {}).get("Repository")
    return INSTALL.format(source=f"git+{repository}" if repository else "")


def stamp(notebook: Any) -> None:
    """Puts that cell behind the title, in the place of an older one."""
    from nbformat.v4 import new_code_cell

    notebook.cells = [cell for cell in notebook.cells if cell.id != "install"]
    notebook.cells.insert(1, new_code_cell(install_cell(), id="install"))


def execute(path: pathlib.Path, inplace: bool) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    if inplace:
        stamp(notebook)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook, resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    noise = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    if noise:
        sys.exit(f"{path} writes to stderr:\n{noise}")
    if inplace:
        for cell in notebook.cells:  # times of an older execution
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inplace", action="store_true")
    parser.add_argument("notebooks", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        start = time.perf_counter()
        execute(path, arguments.inplace)
        print(f"{path} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
