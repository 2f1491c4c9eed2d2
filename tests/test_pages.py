"""Every Python block of a page runs, one after the other in one namespace.

Blocks that import PyTorch run where it is installed; the other blocks of a page need none of them.
"""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def blocks(page):
    """The Python blocks of a page, each on the lines that it has there, for tracebacks."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in found]


def run(page, sources):
    namespace = {"__name__": page}
    for source in sources:
        exec(compile(source, ROOT / page, "exec"), namespace)


def needs_torch(source):
    return "import torch" in source


ALL = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [page for page in ALL if blocks(page)]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page):
    run(page, [source for source in blocks(page) if not needs_torch(source)])


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(needs_torch, blocks(page)))])
def test_code_blocks_with_torch_run(page):
    pytest.importorskip("torch", reason="PyTorch is not installed; make parity runs these blocks")
    run(page, blocks(page))
