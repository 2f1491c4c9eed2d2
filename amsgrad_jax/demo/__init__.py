"""Adam and AMSGrad side by side on three experiments.

online      the linear losses of the AMSGrad paper, on which Adam moves to the
            worst point and AMSGrad to the best
regression  a two-layer network fits random numbers, as in PyTorch's tutorial
digits      a network learns handwritten digits, also with decoupled weight decay

The output is a table of results, a figure for each experiment, and results.json
with the numbers of the table, the settings and the versions.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Final

import jax

from amsgrad_jax.demo import experiments, plots, report

# What computes each experiment, and what draws it.
EXPERIMENTS: Final = MappingProxyType(
    {
        "online": (experiments.online, plots.online),
        "regression": (experiments.regression, plots.regression),
        "digits": (experiments.digits, plots.digits),
    }
)


def run(names: Collection[str], *, out: Path, seed: int, quick: bool) -> None:
    """Runs the named experiments, prints the table and fills the folder ``out``."""
    chosen = {name: pair for name, pair in EXPERIMENTS.items() if name in names}
    duration = "10 seconds" if quick else "half a minute"
    print(
        f"Adam and AMSGrad: {', '.join(chosen)}. Device: {jax.devices()[0].device_kind}.\n"
        f"All three experiments together take about {duration} on two CPU cores.",
        flush=True,
    )
    runs = {name: compute(seed=seed, quick=quick) for name, (compute, _) in chosen.items()}
    every = list(itertools.chain.from_iterable(runs.values()))
    print("\n" + report.table(every))
    for name, (_, draw) in chosen.items():
        report.save_figure(out / f"{name}.png", draw(runs[name]))
    report.save_json(out / "results.json", every, seed=seed, quick=quick)
    print(f"\nThe figures and results.json are in {out.resolve()}\n")
    print(textwrap.fill(report.conclusion(every), 80))
