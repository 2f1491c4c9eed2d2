"""Every Python block of a page runs alone, and prints what the ``text`` block after it shows.

Blocks that import an optional library, such as PyTorch, run where it is installed.
"""

import contextlib
import io
import pathlib
import re
from typing import NamedTuple

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What the extra `test` does not bring.
OPTIONAL = ("torch", "mace", "nequip", "safetensors", "tensorboardX")


class Block(NamedTuple):
    page: str
    line: int
    source: str
    output: str  # of the `text` block that follows, or nothing

    def __str__(self):  # with torch in the name, for `make parity`
        return f"{self.page}:{self.line}" + (" with torch" if self.imports("torch") else "")

    def imports(self, library):
        return re.search(rf"^\s*(import|from) {library}\b", self.source, re.MULTILINE)

    def compile(self):  # on the lines that it has in the page, for tracebacks
        return compile("\n" * self.line + self.source, ROOT / self.page, "exec")


def blocks(page):
    text = (ROOT / page).read_text()
    pattern = r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?"
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[1], found[2] or "")
        for found in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    ]


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


ALL = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = [block for page in ALL for block in blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_prints_what_the_page_shows(block, tmp_path, monkeypatch):
    for library in OPTIONAL:
        if block.imports(library):
            pytest.importorskip(library, reason=f"{library} is not installed")
    if "jax.shard_map(" in block.source and not hasattr(jax, "shard_map"):
        pytest.skip("this JAX has no jax.shard_map")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.compile(), {"__name__": block.page})
    assert lines(printed.getvalue()) == lines(block.output)


def test_pages_show_output_and_keep_their_checks_here():
    for block in BLOCKS:
        assert not re.search(r"^\s*assert ", block.source, re.MULTILINE), str(block)
