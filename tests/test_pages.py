"""Every Python block of a page runs, one after the other in one namespace."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("constraints", "diagnostics", "many_devices", "memory")),
]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page):
    text = (ROOT / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    namespace = {"__name__": page}
    for block in blocks:
        above = text[: block.start(1)].count("\n")  # so that a traceback names the line
        exec(compile("\n" * above + block[1], ROOT / page, "exec"), namespace)
