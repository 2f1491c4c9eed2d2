"""Every Python block of a page runs alone, and prints what the ``text`` block after it shows.

Blocks that import an optional library, such as PyTorch, run where it is installed.
"""

import contextlib
import io
import pathlib
import re
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Their blocks still share one namespace, and say with assert what others print.
CONTINUED = ["docs/diagnostics.md", "docs/migrating.md"]
# What the extra `test` does not bring.
OPTIONAL = ("torch", "flatbuffers", "safetensors", "tensorboardX")


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
ALONE = [block for page in ALL if page not in CONTINUED for block in blocks(page)]


@pytest.mark.parametrize("block", ALONE, ids=str)
def test_a_block_prints_what_the_page_shows(block):
    for library in OPTIONAL:
        if block.imports(library):
            pytest.importorskip(library, reason=f"{library} is not installed")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.compile(), {"__name__": block.page})
    assert lines(printed.getvalue()) == lines(block.output)


def run_continued(page, blocks):
    namespace = {"__name__": page}
    for block in blocks:
        exec(block.compile(), namespace)


@pytest.mark.parametrize("page", CONTINUED)
def test_code_blocks_run(page):
    run_continued(page, [block for block in blocks(page) if not block.imports("torch")])


@pytest.mark.parametrize(
    "page", [page for page in CONTINUED if any(block.imports("torch") for block in blocks(page))]
)
def test_code_blocks_with_torch_run(page):
    pytest.importorskip("torch", reason="PyTorch is not installed; make parity runs these blocks")
    run_continued(page, blocks(page))


def test_pages_show_output_and_keep_their_checks_here():
    for block in ALONE:
        assert not re.search(r"^\s*assert ", block.source, re.MULTILINE), str(block)
