"""What is left of the study of storages: its statistics, tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amsgrad_jax.demo import plots
from benchmarks import pages

Results = dict[str, Any]

FULL, PACKED = "full", "packed"
# Colours that stay apart for colour-blind readers (Okabe and Ito).
_STYLES: dict[str, dict[str, Any]] = {
    FULL: {"color": "black", "linewidth": 3},
    PACKED: {"color": "#E69F00", "linewidth": 1.4, "linestyle": (0, (5, 2))},
}


def paired(full: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean difference from ``full`` and its standard error, both in % of ``full``.

    Both have one loss for each seed, in the same order: what a seed does to both cancels.
    """
    differences = np.subtract(other, full)
    percent = 100 / np.mean(full)
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    return float(np.mean(differences) * percent), float(error * percent)


def passes(difference: float, error: float) -> bool:
    """Whether a loss is within 0.5 % of that with full storage, or two standard errors."""
    return abs(difference) <= max(2 * error, 0.5)


def study_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Losses with full storage, their deviation over seeds, and the difference of packed."""
    return pages.table(
        ("problem", "learning rate", "`b2`", "seeds", "loss, full", "packed"),
        [
            (
                cell["problem"],
                f"{cell['learning_rate']:g}",
                f"{cell['b2']:g}",
                str(len(cell["final"][FULL])),
                _mean(cell["final"][FULL]),
                _difference(cell, PACKED),
            )
            for cell in cells
        ],
    )


def _long_table(long: Mapping[str, Any]) -> str:
    return pages.table(
        ("storage", "loss at the end", "difference from full"),
        [
            (name, _mean(losses), "" if name == FULL else _difference(long, name))
            for name, losses in long["final"].items()
        ],
    )


def exactness_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far packed moments are from float32 ones: mean and deviation over elements, in %."""
    return pages.table(
        ("gradients", "`b2`", "steps", "`nu`", "root of `nu_max`"),
        [
            (
                row["gradients"],
                f"{row['b2']:g}",
                f"{row['steps']:,}",
                *(f"{row[n][0]:+z.2f} ± {row[n][1]:.2f} %" for n in ("nu", "root")),
            )
            for row in rows
        ],
    )


def _stall_table(sizes: Mapping[str, float], cells: Sequence[Mapping[str, Any]]) -> str:
    return pages.table(
        (
            "parameters, state, apply",
            "bytes with the parameter",
            *(f"loss, rate {cell['learning_rate']:g}" for cell in cells),
            *(f"moving, rate {cell['learning_rate']:g}" for cell in cells),
        ),
        [
            (
                name,
                f"{size:g}",
                *(_mean(cell["final"][name]) for cell in cells),
                *(f"{100 * np.mean(cell['moving'][name]):.0f} %" for cell in cells),
            )
            for name, size in sizes.items()
        ],
    )


def tables(results: Results) -> dict[str, str]:
    """The tables of the page, in markdown, by the names of their marks in it."""
    made_with = ", ".join(f"{name} {results[name]}" for name in ("python", "jax", "optax"))
    return {
        "storage-study": study_table(results["cells"])
        + f"\n\nMade with {made_with}, on {results['machine']}.",
        "storage-exactness": exactness_table(results["exactness"]),
        "storage-long": _long_table(results["long"]),
        "storage-stall": _stall_table(results["stall_bytes"], results["stall"]),
    }


def curves(results: Results) -> Any:
    """Training loss over steps: a row for each network and learning rate, a column for each b2."""
    cells = results["cells"]
    rows = list(dict.fromkeys((cell["problem"], cell["learning_rate"]) for cell in cells))
    columns = sorted({cell["b2"] for cell in cells})
    figure = plots.empty(11, 15, "Training loss by storage: mean and deviation of seeds")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()  # of a cell that was not run
    for cell in cells:
        row = rows.index((cell["problem"], cell["learning_rate"]))
        axes = grid[row, columns.index(cell["b2"])]
        axes.set_axis_on()
        _draw(axes, cell, _STYLES)
        axes.set(title=f"{cell['problem']}\nrate {cell['learning_rate']:g}, b2 {cell['b2']:g}")
    for left in grid[:, 0]:
        left.set(ylabel="training loss")
    for bottom in grid[-1]:
        bottom.set(xlabel="step")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def differences(results: Results) -> Any:
    """The difference of packed from full in each cell, with its standard error."""
    cells = results["cells"]
    figure = plots.empty(9, 7, "Final training loss, packed: difference from full storage")
    axes = figure.subplots()
    means, errors = zip(*(paired(c["final"][FULL], c["final"][PACKED]) for c in cells), strict=True)
    axes.errorbar(
        means,
        range(len(cells)),
        xerr=errors,
        fmt="o",
        capsize=3,
        color=_STYLES[PACKED]["color"],
        label="mean over seeds, standard error",
    )
    axes.axvline(0, color="black", linewidth=1)
    axes.axvspan(-0.5, 0.5, color="black", alpha=0.1, label="within 0.5 %")
    axes.set_yticks(
        range(len(cells)),
        [f"{c['problem']}, {c['learning_rate']:g}, {c['b2']:g}" for c in cells],
    )
    axes.invert_yaxis()
    axes.set(xlabel="above full storage, in %", ylabel="network, data, learning rate, b2")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def failures(results: Results) -> Any:
    """The long run, and parameters in bfloat16."""
    long, stall = results["long"], results["stall"]
    figure = plots.empty(13, 4.5, "A long run, and parameters in bfloat16")
    first, *rest = figure.subplots(1, 1 + len(stall))
    _draw(first, long, _STYLES)
    first.set(title=f"MLP, {long['steps']:,} steps, float32 parameters", ylabel="training loss")
    styles = dict(zip(results["stall_bytes"], _STALL_STYLES, strict=True))
    for axes, cell in zip(rest, stall, strict=True):
        _draw(axes, cell, styles)
        axes.set(title=f"MLP, bfloat16 parameters, rate {cell['learning_rate']:g}")
    for axes in (first, *rest):
        axes.set(xlabel="step")
    first.legend(fontsize="small")
    rest[-1].legend(fontsize="small")
    return figure


_STALL_STYLES = (
    {"color": "black", "linewidth": 3},
    {"color": "#D55E00", "linewidth": 1.4, "linestyle": ":"},
    {"color": "#CC79A7", "linewidth": 1.4, "linestyle": "-."},
    {"color": "#E69F00", "linewidth": 1.4, "linestyle": (0, (5, 2))},
)


def _mean(losses: Sequence[float]) -> str:
    return f"{np.mean(losses):.3g} ± {np.std(losses, ddof=1):.1g}"


def _difference(cell: Mapping[str, Any], name: str) -> str:
    difference, error = paired(cell["final"][FULL], cell["final"][name])
    text = f"{difference:+z.2f} ± {error:.2f} %"
    return text if passes(difference, error) else f"**{text}**"


def _draw(axes: Any, cell: Mapping[str, Any], styles: Mapping[str, Mapping[str, Any]]) -> None:
    for name, curve in cell["curves"].items():
        mean, deviation = np.array(curve["mean"]), np.array(curve["deviation"])
        steps = np.linspace(0, cell["steps"], len(mean) + 1)[1:]
        axes.plot(steps, mean, label=name, **styles[name])
        # The axis is logarithmic: a band of factors stays above zero.
        spread = 1 + deviation / mean
        axes.fill_between(
            steps,
            mean / spread,
            mean * spread,
            color=styles[name]["color"],
            alpha=0.15,
            linewidth=0,
        )
    axes.set(yscale="log")
    axes.grid(alpha=0.3)
