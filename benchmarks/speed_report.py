"""The tables and figures of the comparison of speed, from its results."""

from collections.abc import Mapping, Sequence
from typing import Any

from amsgrad_jax.demo import plots
from benchmarks import pages

Results = Mapping[str, Any]

# Those whose steps do the same work as ours; the fastest of them is what we compare with.
_OTHER_WORK = ("optax.adam", "x ←")
# Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLORS = {
    "ours, full": "#0072B2",
    "ours, packed": "#009E73",
    "optax.amsgrad": "#E69F00",
    "Keras on JAX": "#CC79A7",
    "torch Adam(amsgrad=True), fused": "#D55E00",
    "torch Adam(amsgrad=True), foreach": "#999999",
    "torch Adam(amsgrad=True), default": "#000000",
}


def best_peer(step: Mapping[str, Sequence[float]]) -> float:
    """The median of the fastest AMSGrad that is not ours."""
    return min(
        median
        for name, (_, median, _) in step.items()
        if not name.startswith(("ours", *_OTHER_WORK))
    )


def tables(results: Results) -> dict[str, str]:
    """The tables of the page, by the names of their marks."""
    parts = {
        "step": _step(results["trees"], list(results["moves"]))
        + _figure(results, "step", "Time of a step"),
        "bandwidth": _bandwidth(results),
        "compile": _compile(results["trees"]),
        "memory": _memory(results["trees"][0]["memory"], list(results["moves"])),
        "scaling": _scaling(results["scaling"])
        + _figure(results, "scaling", "Time per parameter, by the number of parameters"),
    }
    versions = ("python", "jax", "optax", "keras", "torch", "amsgrad_jax")
    made_with = ", ".join(f"{name} {results[name]}" for name in versions if name in results)
    parts["machine"] = f"Measured on {results['date']}: {results['machine']}; {made_with}."
    return {f"{results['backend']}-{name}": part for name, part in parts.items()}


def _figure(results: Results, name: str, text: str) -> str:
    return f"\n\n![{text}](speed_{results['backend']}_{name}.png)"


def _title(tree: Mapping[str, Any]) -> str:
    return f"{tree['name']}, {tree['size'] / 1e6:,.3g} M"


def _step(trees: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    def cell(tree: Mapping[str, Any], name: str) -> str:
        if name not in tree["step"]:
            return ""
        low, median, high = tree["step"][name]
        spread = 100 * (high - low) / (2 * median)
        return f"{median:.3g} ±{spread:.0f}% ({median / best_peer(tree['step']):.2f})"

    return pages.table(
        ("optimizer", *map(_title, trees)),
        [(name, *(cell(tree, name) for tree in trees)) for name in names],
    )


def _bandwidth(results: Results) -> str:
    large = results["trees"][:2]

    def speed(tree: Mapping[str, Any], name: str) -> float:
        return results["moves"][name] * tree["size"] / (1e6 * tree["step"][name][1])

    def cells(tree: Mapping[str, Any], name: str) -> tuple[str, str]:
        copy = max(speed(tree, other) for other in tree["step"] if other.startswith("x ←"))
        return f"{speed(tree, name):.3g}", f"{100 * speed(tree, name) / copy:.0f} %"

    return pages.table(
        (
            "optimizer",
            "bytes per parameter",
            *(f"{tree['name']}, {unit}" for tree in large for unit in ("GB/s", "of the copy")),
        ),
        [
            (name, str(results["moves"][name]), *(c for tree in large for c in cells(tree, name)))
            for name in results["moves"]
        ],
    )


def _compile(trees: Sequence[Mapping[str, Any]]) -> str:
    def cell(tree: Mapping[str, Any], name: str) -> str:
        trace, compilation = tree["compile"][name]
        ratio = (trace + compilation) / sum(tree["compile"]["optax.amsgrad"])
        return f"{trace:.2f} + {compilation:.2f} ({ratio:.2f})"

    return pages.table(
        ("optimizer", *(tree["name"] for tree in trees)),
        [(name, *(cell(tree, name) for tree in trees)) for name in trees[0]["compile"]],
    )


def _memory(memory: Mapping[str, Any], names: Sequence[str]) -> str:
    def row(name: str, state: float, extra: float | None) -> tuple[str, ...]:
        if extra is None:
            return name, f"{state:g}", "", ""
        return name, f"{state:g}", f"{extra:.1f}", f"{8 + state + extra:.1f}"

    return pages.table(
        ("optimizer", "state", "more in a step", "peak, with parameter and gradient"),
        [row(name, *memory[name]) for name in names if memory[name][0]],
    )


def _scaling(scaling: Mapping[str, Any]) -> str:
    sizes = scaling["sizes"]
    return pages.table(
        ("optimizer", *(f"{size:.0e}".replace("e+0", "e") for size in sizes)),
        [
            (name, *(f"{1e3 * us / size:.3g}" for us, size in zip(times, sizes, strict=True)))
            for name, times in scaling["microseconds"].items()
        ],
    )


def figures(results: Results) -> dict[str, Any]:
    """The figures by the names of their files."""
    start = f"speed_{results['backend']}_"
    return {f"{start}step.png": _bars(results), f"{start}scaling.png": _lines(results["scaling"])}


def _bars(results: Results) -> Any:
    trees = results["trees"]
    names = [name for name in _COLORS if name in trees[0]["step"]]
    figure = plots.empty(10, 5.5, "A step, as a multiple of the fastest AMSGrad that is not ours")
    axes = figure.subplots()
    for i, name in enumerate(names):
        ratios = [tree["step"][name][1] / best_peer(tree["step"]) for tree in trees]
        places = [j + 0.8 * ((i + 0.5) / len(names) - 0.5) for j in range(len(trees))]
        axes.bar(places, ratios, 0.8 / len(names), color=_COLORS[name], label=name)
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(trees)), [_title(tree).replace(", ", "\n") for tree in trees])
    axes.set(ylabel="time of a step, fastest peer = 1", yscale="log")
    axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _lines(scaling: Mapping[str, Any]) -> Any:
    figure = plots.empty(8, 5, "One array: time of a step, for each parameter")
    axes = figure.subplots()
    for name, times in scaling["microseconds"].items():
        per = [1e3 * us / size for us, size in zip(times, scaling["sizes"], strict=True)]
        axes.plot(scaling["sizes"], per, "o-", color=_COLORS[name], label=name)
    axes.set(xlabel="parameters", ylabel="nanoseconds", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
