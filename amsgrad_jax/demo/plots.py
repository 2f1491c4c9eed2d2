"""The figures: one function for each experiment, from its runs to a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from amsgrad_jax.demo.experiments import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers (Okabe and Ito). Thin lines are drawn over
# thick ones, so that both are seen where they agree.
_ORANGE, _BLUE = "#E69F00", "#0072B2"
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "Adam": {"color": _ORANGE, "linewidth": 2.4},
    "AMSGrad": {"color": _BLUE, "linewidth": 1.3},
    "AdamW": {"color": _ORANGE, "linewidth": 2.4, "linestyle": (0, (4, 2))},
    "AMSGradW": {"color": _BLUE, "linewidth": 1.3, "linestyle": (0, (8, 3))},
}


def online(runs: Sequence[Run]) -> Figure:
    """The points and the average regret of each problem, in one row each."""
    from matplotlib import rc_context

    problems = {run.problem: run.settings["losses"] for run in runs}
    # Narrow, with large letters: the site begins with this picture, and is read on phones, too.
    with rc_context({"font.size": 12, "axes.titlesize": "medium", "figure.titlesize": "large"}):
        title = "The loss is slope * x, and the slope keeps changing"
        figure = empty(6.4, 8.6, title, dpi=160)
        rows = figure.subplots(len(problems), 2, sharex=True)
        for (point, regret), (problem, losses) in zip(rows, problems.items(), strict=True):
            for run in runs:
                if run.problem == problem:
                    _line(point, run, "x")
                    _line(regret, run, "average regret")
            point.axhline(1, color="black", linestyle="--", linewidth=1)
            point.axhline(-1, color="black", linestyle=":")
            name = f"{problem.removeprefix('online: ')}: {losses}"
            point.set(title=textwrap.fill(name, 30), ylabel="x", ylim=(-1.25, 1.25))
            point.set(yticks=(-1, 0, 1), yticklabels=("best -1", "0", "worst +1"))
            # Chance can bring a regret below 0 for a while; those points are left out.
            regret.set(title="average regret", xscale="log", yscale="log", ylim=(1e-4, None))
        for bottom in rows[-1]:
            bottom.set(xlabel="step")
        figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def regression(runs: Sequence[Run]) -> Figure:
    """The loss over the steps."""
    figure = empty(8, 5, "A small network fits random numbers")
    axes = figure.subplots()
    for run in runs:
        _line(axes, run, "loss")
    axes.set(xlabel="step", ylabel="loss (sum of squared errors)", yscale="log")
    axes.legend()
    return figure


def digits(runs: Sequence[Run]) -> Figure:
    """Training loss and test accuracy over the epochs."""
    figure = empty(11, 5, "A small network learns to read handwritten digits")
    loss, accuracy = figure.subplots(1, 2)
    for run in runs:
        _line(loss, run, "training loss")
        _line(accuracy, run, "test accuracy")
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)", yscale="log")
    # All begin near 10 %; what differs is near the end.
    lowest = min(run.curves["test accuracy"][-1] for run in runs) - 0.05
    accuracy.set(xlabel="epoch", ylabel="test accuracy", ylim=(lowest, 1.0))
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    accuracy.legend(loc="lower right")
    return figure


def empty(width: float, height: float, title: str, dpi: int = 120) -> Figure:
    """A figure of that size in inches, to be filled."""
    # A bare Figure draws into files without any choice of a screen backend.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    figure.suptitle(title, fontsize="x-large")
    return figure


def _line(axes: Axes, run: Run, measure: str) -> None:
    horizontal, *_ = run.curves.values()
    axes.plot(horizontal, run.curves[measure], label=run.optimizer, **_STYLES[run.optimizer])
    axes.grid(alpha=0.3)
