"""Results of the runs: the table, results.json, and figures; files are complete or absent."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Final

import jax
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax.demo.experiments import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS: Final = MappingProxyType(
    {
        "x": "x {:+.3f} (best -1, worst +1)",
        "average regret": "average regret {:.4f}",
        "loss": "loss {:.2e}",
        "training loss": "training loss {:.2e}",
        "test accuracy": "test accuracy {:.1%}",
    }
)


def final(run: Run) -> dict[str, float]:
    """The last value of each curve that the table shows."""
    return {name: float(run.curves[name][-1]) for name in _FORMATS if name in run.curves}


def table(runs: Iterable[Run]) -> str:
    """The last value of each curve, as a table in plain text."""
    rows: list[tuple[str, ...]] = [("problem", "optimizer", "at the end", "seconds")]
    for run in runs:
        figures = [_FORMATS[measure].format(value) for measure, value in final(run).items()]
        rows.append((run.problem, run.optimizer, ", ".join(figures), f"{run.seconds:7.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple(width * "-" for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def conclusion(runs: Iterable[Run]) -> str:
    """One sentence on the results of the runs."""
    ends: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        ends.setdefault(run.problem, {})[run.optimizer] = final(run)
    parts = []
    online = [end for problem, end in ends.items() if problem.startswith("online")]
    if online:
        apart = sum(end["AMSGrad"]["x"] < 0 < end["Adam"]["x"] for end in online)
        parts.append(
            f"in {apart} of {len(online)} online problems Adam goes to the worst point and AMSGrad "
            "to the best, because the running maximum keeps the rare large gradient"
        )
    if "regression" in ends:
        adam, amsgrad = (ends["regression"][name]["loss"] for name in ("Adam", "AMSGrad"))
        parts.append(
            "on the regression Adam has the lower loss, as expected: gradients decrease with the "
            "loss, and a maximum from the first steps only makes later steps smaller"
            if adam < amsgrad
            else "on the regression Adam does not have the lower loss"
        )
    if "digits" in ends:
        adam, amsgrad = (ends["digits"][name]["test accuracy"] for name in ("Adam", "AMSGrad"))
        difference = 100 * abs(adam - amsgrad)
        parts.append(f"on the digits their test accuracies are {difference:.1f} points apart")
    return f"What this shows: {'; '.join(parts)}."


def save_json(path: Path, runs: Iterable[Run], *, seed: int, quick: bool) -> None:
    """Writes the numbers of the table, the settings and the versions."""
    results = {
        "seed": seed,
        "quick": quick,
        "versions": {
            "amsgrad_jax": amsgrad_jax.__version__,
            "jax": jax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "runs": [
            {
                "problem": run.problem,
                "optimizer": run.optimizer,
                "settings": run.settings,
                "final": final(run),
                "seconds": round(run.seconds, 2),
            }
            for run in runs
        ],
    }
    text = json.dumps(results, indent=2) + "\n"
    _save(path, lambda file: file.write(text.encode()))


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    _save(path, lambda file: figure.savefig(file, format="png"))


def _save(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    # Under another name until it is complete: nobody finds half a file.
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        write(file)
    unfinished.replace(path)
