"""Adam and AMSGrad on an interatomic potential: energies and forces of small alloy cells.

The network and the data are those of examples/interatomic_potential.py. Every optimizer gets the
same starts, the same batches and the same grid of learning rates, of which it takes the one with
the smallest force error on the validation structures. The seeds that choose and the structures
that choose are not those that are reported.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax import diagnostics
from benchmarks import machine, pages

_B2: Final = 0.999
_CLIP: Final = 10.0
_RATES: Final = (0.005, 0.01, 0.02, 0.04, 0.08)
_GRID_SEEDS: Final = (100, 101)
_SEEDS: Final = tuple(range(len(_RATES) * len(_GRID_SEEDS)))  # as many runs: one compilation
_TRAIN, _HELD_OUT, _EPOCHS = 400, 64, 60  # structures, also to validate and to test on
_UNITS: Final = ("energy, meV/atom", "forces, meV/Å")
_ADAM: Final = "Adam"

OPTIMIZERS: Final[MappingProxyType[str, Callable[..., Any]]] = MappingProxyType(
    {
        _ADAM: functools.partial(optax.adam, b2=_B2),
        "AMSGrad, PyTorch's convention": functools.partial(amsgrad_jax.amsgrad, b2=_B2),
        "AMSGrad, Optax's convention": functools.partial(
            amsgrad_jax.amsgrad, b2=_B2, convention="optax"
        ),
        "AMSGrad, PyTorch's, packed": functools.partial(
            amsgrad_jax.amsgrad, b2=_B2, storage="packed"
        ),
    }
)


# Colours that stay apart for colour-blind readers (Okabe and Ito).
_STYLES: Final = tuple(
    {"color": color, "marker": marker}
    for color, marker in zip(("#E69F00", "#0072B2", "#009E73", "black"), "osD^", strict=True)
)


@functools.cache
def example() -> Any:
    """The module of the example, which is no package."""
    folder = str(pages.DOCS.parent / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("interatomic_potential")


def structures(train: int, held_out: int) -> list[Any]:
    """Structures to train on, to validate on, and to test on."""
    made = example().common.make_structures(train + 2 * held_out)
    made = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32 if a.dtype == float else int), made)
    ends = (0, train, train + held_out, train + 2 * held_out)
    return [
        jax.tree.map(lambda array, part=slice(*part): array[part], made)
        for part in itertools.pairwise(ends)
    ]


def errors(params: Any, data: Any) -> jax.Array:
    """Mean absolute errors of energies per atom and of forces, in meV and meV/Å."""
    energies, forces = example().predict(params, data)
    atoms = data.positions.shape[1]
    return 1000 * jnp.stack(
        [jnp.abs(energies - data.energy).mean() / atoms, jnp.abs(forces - data.forces).mean()]
    )


def _slowdown(name: str, state: Any) -> jax.Array:
    """How much the maximum shortens the last step of half of the parameters, at least: a factor."""
    if name == _ADAM:
        return jnp.ones(())
    convention = "optax" if "Optax" in name else "pytorch"
    report = diagnostics.max_report(
        state, per="tree", quantiles=(0.5,), b2=_B2, convention=convention
    )
    return report["slowdown_q50"]


@functools.partial(jax.jit, static_argnames="name")
def _train(name: str, rates: jax.Array, starts: Any, batches: jax.Array, data: Any) -> Any:
    """Errors of many runs at once, shape (runs, held-out parts, 2), and what slows them down."""
    train, *held_out = data
    decay = optax.cosine_decay_schedule(1.0, batches.shape[1])

    def one(rate: jax.Array, params: Any, batches: jax.Array) -> Any:
        optimizer = optax.chain(
            optax.clip_by_global_norm(_CLIP), OPTIMIZERS[name](lambda count: rate * decay(count))
        )

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            some = jax.tree.map(lambda array: array[batch], train)
            gradients = jax.grad(example().loss_of)(params, some)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return jnp.stack([errors(params, part) for part in held_out]), _slowdown(name, state)

    # One by one, which on a CPU is as fast as all at once. With jax.vmap over runs and structures,
    # XLA's CPU compiler of jaxlib 0.10.2 gives wrong forces from the 33rd structure on.
    return jax.lax.map(lambda run: one(*run), (rates, starts, batches))


def runs(
    name: str, settings: Sequence[tuple[float, int]], data: Any, epochs: int
) -> list[np.ndarray]:
    """The errors of runs with these learning rates and seeds, and what slows them down."""
    starts, orders = [], []
    for _, seed in settings:
        start = jax.tree.map(lambda array: np.asarray(array, np.float32), example().init(seed))
        starts.append(start)
        numbers = range(1000 * seed, 1000 * seed + epochs)
        size = len(data[0].energy)
        orders.append(np.concatenate([example().common.batches_of(n, size) for n in numbers]))
    rates = jnp.asarray([rate for rate, _ in settings], jnp.float32)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    return [np.asarray(one) for one in _train(name, rates, stacked, np.stack(orders), data)]


def study(names: Iterable[str], data: Any, epochs: int) -> list[dict[str, Any]]:
    """For each optimizer its grid, its learning rate, and its errors on the test structures."""
    results = []
    for name in names:
        start = time.perf_counter()
        grid, _ = runs(name, list(itertools.product(_RATES, _GRID_SEEDS)), data, epochs)
        forces = grid.reshape(len(_RATES), len(_GRID_SEEDS), 2, 2)[:, :, 0, 1].mean(axis=1)
        rate = _RATES[int(np.nanargmin(forces))]  # a run that diverged is not the best one
        ends, slowdown = runs(name, [(rate, seed) for seed in _SEEDS], data, epochs)
        results.append(
            {
                "optimizer": name,
                "learning rate": rate,
                "grid": [float(f"{value:.4g}") for value in forces],
                "test": {
                    unit: [float(f"{value:.5g}") for value in column]
                    for unit, column in zip(_UNITS, ends[:, 1].T, strict=True)
                },
                "slowdown": [float(f"{value:.4g}") for value in slowdown],
            }
        )
        shown = ", ".join(f"{value:.1f}" for value in forces)
        print(f"{name}: {shown} ({time.perf_counter() - start:.0f} s)", flush=True)
    return results


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    column = np.asarray(values)
    return float(column.mean()), float(column.std(ddof=1) / np.sqrt(len(column)))


def paired(results: Mapping[str, Any], name: str, unit: str) -> tuple[float, float]:
    """How much larger an optimizer's errors are than Adam's, and the standard error of that.

    Runs of one seed have the same start and the same batches, so that the seeds' spread drops out.
    """
    of = {one["optimizer"]: one["test"][unit] for one in results["optimizers"]}
    return mean_and_error([a - b for a, b in zip(of[name], of[_ADAM], strict=True)])


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/potential.md by the names of their places, from docs/potential.json."""
    rows, grid = [], []
    for one in results["optimizers"]:
        name = one["optimizer"]
        row = [name, f"{one['learning rate']:g}"]
        row += ["{:.2f} ± {:.2f}".format(*mean_and_error(one["test"][unit])) for unit in _UNITS]
        if name == _ADAM:
            row += ["", "", ""]
        else:
            row += ["{:+.2f} ± {:.2f}".format(*paired(results, name, unit)) for unit in _UNITS]
            row.append(f"{np.mean(one['slowdown']):.2f}")
        rows.append(row)
        grid.append([name, *(f"{value:.1f}" for value in one["grid"])])
    against = [f"{unit.partition(',')[0]} less Adam's" for unit in _UNITS]
    rates = results["settings"]["learning rates"]
    head = ("optimizer", "learning rate", *_UNITS, *against, "slowdown")
    versions = ", ".join(f"{name} {results[name]}" for name in ("python", "jax", "optax", "ase"))
    return {
        "potential-errors": f"{pages.table(head, rows)}\n\n{versions}; {results['machine']}.",
        "potential-grid": pages.table(("optimizer", *(f"{rate:g}" for rate in rates)), grid),
    }


def draw(results: Mapping[str, Any]) -> Any:
    """The force errors of all seeds, and those of the grid of learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    ends, grid = figure.subplots(1, 2, width_ratios=(3, 2))
    rates = results["settings"]["learning rates"]
    for place, (one, style) in enumerate(zip(results["optimizers"], _STYLES, strict=True)):
        errors = one["test"][_UNITS[1]]
        beside = place + np.linspace(-0.2, 0.2, len(errors))  # a seed is always at the same place
        ends.plot(beside, errors, linestyle="", **style)
        ends.hlines(np.mean(errors), place - 0.3, place + 0.3, color=style["color"])
        grid.plot(rates, one["grid"], label=one["optimizer"], **style)
    names = [one["optimizer"].replace(", ", ",\n") for one in results["optimizers"]]
    names = [name.replace(" convention", "\nconvention") for name in names]
    ends.set_xticks(range(len(names)), names)
    ends.set_title("Test cells: one point per seed, and the means")
    ends.set_ylabel("error of the forces, meV/Å")
    grid.set(xscale="log", xlabel="learning rate", title="Validation cells, two seeds")
    best = min(min(one["grid"]) for one in results["optimizers"])
    grid.set_ylim(0.95 * best, 1.5 * best)  # what diverges leaves the picture above
    grid.set_xticks(rates, [f"{rate:g}" for rate in rates])
    grid.minorticks_off()
    grid.legend(fontsize="small")
    return figure


def main(quick: bool) -> None:
    train, held_out, epochs = (16, 8, 1) if quick else (_TRAIN, _HELD_OUT, _EPOCHS)
    names = list(OPTIMIZERS)[::3] if quick else OPTIMIZERS
    print(f"Energies and forces of alloys: {len(_SEEDS)} seeds, errors on {held_out} test cells")
    results: dict[str, Any] = {
        "optimizers": study(names, structures(train, held_out), epochs),
        "settings": {
            "learning rates": _RATES,
            "b2": _B2,
            "clip": _CLIP,
            "epochs": epochs,
            "batch": example().common.BATCH,
            "training structures": train,
            "validation structures": held_out,
            "test structures": held_out,
            "seeds": _SEEDS,
            "grid seeds": _GRID_SEEDS,
        },
    }
    results |= machine.describe("amsgrad_jax", "ase", "jax", "numpy", "optax")
    for name, text in tables(results).items():
        print(f"\n{name}\n{text}")
    print()
    if not quick:
        figures = {"potential_errors.png": draw(results)}
        pages.publish("potential.md", "potential", results, tables(results), figures)
