"""Checks that the search of the built site puts first the pages that readers mean by a word.

It reads the index that the site's search reads, and scores as that does, without a browser.
"""

import json
import pathlib
import re
import sys

from sphinx.search.en import SearchEnglish

# What is typed, and the page that is meant.
QUERIES = {
    "quantized": "memory",
    "quantised": "memory",
    "8-bit": "memory",
    "8-bit optimizer": "memory",
    "stochastic rounding": "memory",
    "mixed precision": "memory",
    "EMA": "getting_started",
    "exponential moving average": "getting_started",
    "ZeRO": "many_devices",
    "checkpoint": "memory",
    "NaN": "diagnostics",
    "Flax": "examples/flax_nnx",
    "MACE": "migrating",
    "NequIP checkpoint": "migrating",
}


def first(index: dict, query: str) -> set[str]:
    """The pages that the search puts first: all have all words, and titles come before texts."""
    stem = SearchEnglish({}).stem
    scores = dict.fromkeys(index["docnames"], 0)
    for word in re.findall(r"\w+", query):
        if word.isdigit():  # which Sphinx's search leaves out
            continue
        having = {}
        for terms, score in ((index["terms"], 5), (index["titleterms"], 15)):
            numbers = terms.get(stem(word.lower()), [])
            for number in [numbers] if isinstance(numbers, int) else numbers:
                having[index["docnames"][number]] = score
        scores = {
            page: max(scores[page], score) for page, score in having.items() if page in scores
        }
    return {page for page, score in scores.items() if score == max(scores.values())}


def main(site: str) -> None:
    text = (pathlib.Path(site) / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    for query, page in QUERIES.items():
        if page not in (pages := first(index, query)):
            sys.exit(f"who searches {query!r} is shown {sorted(pages)} before {page}")
    print(f"the search puts first what is meant by {', '.join(QUERIES)}")


if __name__ == "__main__":
    main(sys.argv[1])
