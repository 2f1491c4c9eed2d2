"""One gradient 10,000 times too large: what it does to AMSGrad and to Adam, and what helps.

A network learns handwritten digits; the gradient of step 100 is multiplied by 10,000. The
table says after how many steps the training loss was below 0.01 for good. b2 is 0.99, so that
Adam's own second moment has forgotten the spike after about ln(1e8 * 0.01) / 0.01 = 1,400
steps; with the usual 0.999 it needs 11,500, and the runs would have to be eight times as long
to show the same.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Final, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax import diagnostics, remedies
from amsgrad_jax._state import Storage
from amsgrad_jax.demo import problems
from benchmarks import machine, pages

_B2: Final = 0.99
_LEARNING_RATE: Final = 1e-3
_SPIKE_AT: Final = 100
_SPIKE: Final = 1e4
_LOSS: Final = 0.01
_EVERY: Final = 20  # steps from one measured loss to the next

_AMSGRAD: Final = functools.partial(amsgrad_jax.amsgrad, _LEARNING_RATE, b2=_B2)
# Label, what makes the optimizer, and the size of the spike.
_RUNS: Final[tuple[tuple[str, Callable[[], Any], float], ...]] = (
    ("AMSGrad, no spike", _AMSGRAD, 1.0),
    ("AMSGrad, spike", _AMSGRAD, _SPIKE),
    (
        "AMSGrad, spike, clipped to norm 1",
        lambda: optax.chain(optax.clip_by_global_norm(1.0), _AMSGRAD()),
        _SPIKE,
    ),
    (
        "AMSGrad, spike, reset 50 steps later",
        lambda: remedies.reset_max_when(_AMSGRAD(), lambda count: count == _SPIKE_AT + 50),
        _SPIKE,
    ),
    (
        "AMSGrad, spike, reset 1,400 steps later",
        lambda: remedies.reset_max_when(_AMSGRAD(), lambda count: count == _SPIKE_AT + 1400),
        _SPIKE,
    ),
    (
        "AMSGrad, spike, reset every 200 steps",
        lambda: remedies.reset_max_when(_AMSGRAD(), lambda count: count % 200 == 0),
        _SPIKE,
    ),
    ("Adam, no spike", lambda: optax.adam(_LEARNING_RATE, b2=_B2), 1.0),
    ("Adam, spike", lambda: optax.adam(_LEARNING_RATE, b2=_B2), _SPIKE),
)


def _train(
    optimizer: Any, spike: float, seed: int, steps: int
) -> tuple[np.ndarray, dict[int, diagnostics.Report]]:
    """The training loss every so many steps, and what the optimizer's watch saw, if it has one."""
    task = problems.digits(steps // 14 + 1, seed)  # an epoch has 14 batches
    batches = task.batches.reshape(-1, task.batches.shape[-1])
    train = np.unique(task.batches)

    def step(carry: Any, scale_and_batch: Any) -> Any:
        params, state = carry
        scale, batch = scale_and_batch
        inputs, targets = jnp.asarray(task.inputs)[batch], jnp.asarray(task.targets)[batch]
        gradients = jax.tree.map(
            lambda gradient: scale * gradient, jax.grad(task.loss)(params, inputs, targets)
        )
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def some_steps(carry: Any, scales: jax.Array, batches: jax.Array) -> Any:
        (params, state), _ = jax.lax.scan(step, carry, (scales, batches))
        return (params, state), task.loss(params, task.inputs[train], task.targets[train])

    scales = np.ones(steps, np.float32)
    scales[_SPIKE_AT - 1] = spike
    carry = task.params, optimizer.init(task.params)
    losses, reports = [], {}
    for start in range(0, steps, _EVERY):
        part = slice(start, start + _EVERY)
        carry, loss = some_steps(carry, scales[part], batches[part])
        losses.append(float(loss))
        if isinstance(carry[1], diagnostics.WatchState):
            reports[start + _EVERY] = diagnostics.last_report(carry[1])
    return np.array(losses), reports


def steps_needed(losses: np.ndarray) -> int | None:
    """The step from which on the loss is below the goal; None if it is not at the end."""
    above = np.flatnonzero(losses >= _LOSS)
    last = above[-1] + 1 if above.size else 0
    return None if last == len(losses) else int(last + 1) * _EVERY


def _median(column: list[int | None]) -> str:
    reached = [value for value in column if value is not None]
    if len(reached) < len(column):
        return f"not reached in {len(column) - len(reached)} of {len(column)} runs"
    return f"{statistics.median(reached):.0f} ({min(reached)} to {max(reached)})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/diagnostics.md by the names of their places, from docs/spike.json."""
    runs = [
        (run["run"], _median(run["steps needed"]), f"{run['final loss']:.1e}")
        for run in results["runs"]
    ]
    costs = [
        (
            f"{cost['parameters']:,}",
            cost["storage"],
            f"{cost['step ms']:.1f}",
            f"{cost['report ms']:.1f}",
            f"{cost['report ms'] / cost['step ms']:.2f}",
        )
        for cost in results["costs"]
    ]
    return {
        "spike-table": pages.table(
            ("run", "steps, median (range) of 5 seeds", "loss after 4,000"), runs
        ),
        "spike-costs": pages.table(
            ("parameters", "storage", "a step, ms", "a report, ms", "in steps"), costs
        ),
    }


def _seconds(function: Any, *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cost(size: int, storage: Storage) -> dict[str, Any]:
    """Milliseconds of a report and of a step without the gradient, of one leaf."""
    optimizer = amsgrad_jax.amsgrad(_LEARNING_RATE, storage=storage)
    params = jnp.ones((1000, size // 1000))
    state = jax.jit(optimizer.init)(params)
    gradients = jax.random.normal(jax.random.key(0), params.shape)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state, gradients)
    made = jax.jit(diagnostics.max_report)
    row = {
        "step ms": 1e3 * _seconds(step, params, state, gradients),
        "report ms": 1e3 * _seconds(made, state),
    }
    return {"parameters": size, "storage": storage} | {k: round(v, 2) for k, v in row.items()}


def _draw(curves: dict[str, list[np.ndarray]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    # The colours of Okabe and Ito.
    colours = (
        "#000000",
        "#D55E00",
        "#009E73",
        "#CC79A7",
        "#E69F00",
        "#0072B2",
        "#999999",
        "#56B4E9",
    )
    for (label, losses), colour in zip(curves.items(), colours, strict=False):
        steps = _EVERY * np.arange(1, len(losses[0]) + 1)
        axes.plot(steps, np.median(losses, axis=0), color=colour, label=label)
    axes.axhline(_LOSS, color="black", linestyle=":", linewidth=1)
    _mark(axes, 0.97, "0.4")
    axes.set(
        xlabel="step",
        ylabel="training loss (median of the seeds)",
        yscale="log",
        title=f"One gradient times {_SPIKE:,.0f} at step {_SPIKE_AT}",
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _draw_reports(reports: dict[int, diagnostics.Report]) -> Any:
    figure = diagnostics.plot(reports)
    leaves, bar = figure.axes
    _mark(leaves, 0.9, "white")
    bar.set_ylabel("times slower than Adam")
    return figure


def _mark(axes: Any, height: float, color: str) -> None:
    """Where the spike is; the height of the word is a part of that of the axes."""
    axes.axvline(_SPIKE_AT, color=color, linestyle="--", linewidth=1)
    place = axes.get_xaxis_transform()
    axes.text(_SPIKE_AT, height, " spike", color=color, va="top", transform=place)


def main(quick: bool) -> None:
    steps, seeds = (200, range(1)) if quick else (4000, range(5))
    print(
        f"Steps until the training loss stays below {_LOSS}: median (range) of {len(seeds)} seeds"
    )
    curves: dict[str, list[np.ndarray]] = {}
    rows = []
    for label, make, spike in _RUNS[1:3] if quick else _RUNS:
        curves[label] = [_train(make(), spike, seed, steps)[0] for seed in seeds]
        needed = [steps_needed(losses) for losses in curves[label]]
        final = statistics.median(float(losses[-1]) for losses in curves[label])
        rows.append({"run": label, "steps needed": needed, "final loss": final})
        print(f"{label:42}{_median(needed):34} final loss {final:.1e}", flush=True)

    print("\nA report beside a step of update and apply, one leaf")
    costs = [
        _cost(size, storage)
        for size in ((100_000,) if quick else (1_000_000, 10_000_000))
        for storage in get_args(Storage)
    ]
    for cost in costs:
        print(
            f"{cost['parameters']:>10,} parameters, {cost['storage']:5}"
            f" step {cost['step ms']:7.2f} ms, report {cost['report ms']:6.2f} ms"
            f" = {cost['report ms'] / cost['step ms']:.2f} steps"
        )
    watched = diagnostics.watch(_AMSGRAD(), _EVERY)
    _, reports = _train(watched, _SPIKE, 0, steps // 2)
    figures = {"spike.png": _draw(curves), "spike_heatmap.png": _draw_reports(reports)}
    print()
    if quick:  # has shown that it runs; what is in docs/ stays
        return
    results: dict[str, Any] = {
        "settings": {
            "b2": _B2,
            "learning_rate": _LEARNING_RATE,
            "spike": _SPIKE,
            "spike at step": _SPIKE_AT,
            "loss": _LOSS,
            "steps": steps,
            "seeds": len(seeds),
        },
        "runs": rows,
        "costs": costs,
    }
    results |= machine.describe("jax", "optax")
    pages.publish("diagnostics.md", "spike", results, tables(results), figures)
