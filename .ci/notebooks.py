"""Executes notebooks; fails on an error, and on whatever goes to stderr: a warning, say."""

import pathlib
import sys
import time

import nbclient
import nbformat

for path in map(pathlib.Path, sys.argv[1:]):
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    noise = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    if noise:
        sys.exit(f"{path} writes to stderr:\n{noise}")
    print(f"{path} ({time.perf_counter() - start:.0f} s)", flush=True)
