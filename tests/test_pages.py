"""Every Python block of the pages runs, page by page, one after the other in one namespace."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/constraints.md"])
def test_code_blocks_run(page):
    text = (ROOT / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    namespace = {"__name__": page}
    for block in blocks:
        above = text[: block.start(1)].count("\n")  # so that a traceback names the line
        exec(compile("\n" * above + block[1], ROOT / page, "exec"), namespace)
