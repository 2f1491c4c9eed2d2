"""Training with moments in 12, 5 and 4 bytes: losses, seed by seed, beside FULL.

Three networks, two learning rates, two decay rates, several seeds, four storages; one long
run; parameters in bfloat16. Half an hour on one core. Writes
docs/storage.json and its figures, and refreshes the tables of docs/memory.md.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import amsgrad_jax
from amsgrad_jax import codecs
from benchmarks import machine, pages, storage_report
from benchmarks.storage_problems import Problem, convolutional, mlp, transformer

_NEAREST = codecs.BFLOAT16_NEAREST
STORAGES = {
    storage_report.FULL: amsgrad_jax.FULL,
    "COMPACT": amsgrad_jax.COMPACT,
    "TINY": amsgrad_jax.TINY,
    "nearest bfloat16": amsgrad_jax.Storage(mu=_NEAREST, nu=_NEAREST, nu_max=_NEAREST),
}

Apply = Callable[[Any, Any, jax.Array], Any]


class Plan(NamedTuple):
    """How long, how often and with which learning rates; the loss is recorded 100 times."""

    steps: int
    seeds: int
    rates: tuple[float, ...]


def _plain(params: Any, updates: Any, count: jax.Array) -> Any:
    del count
    return optax.apply_updates(params, updates)


def train(
    problem: Problem,
    optimizer: Callable[[Any], optax.GradientTransformation],
    plan: Plan,
    *,
    dtype: Any = jnp.float32,
    apply: Apply = _plain,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains with every rate and seed; returns what was recorded, (rates, seeds, records).

    First the training loss; then the share of parameters that differ from those at the
    record before. A seed decides the first parameters and the batches, whatever the
    optimizer. It does not decide the bits of stochastic rounding: those come from the
    position of an element and the number of the step, so that all seeds have the same.
    """
    records = min(100, plan.steps)
    rates, seeds = np.meshgrid(
        np.asarray(plan.rates, np.float32), np.arange(plan.seeds), indexing="ij"
    )
    params = jax.jit(jax.vmap(problem.init))(jax.vmap(jax.random.key)(jnp.arange(plan.seeds)))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    batches = np.stack(
        [
            np.random.default_rng(seed).integers(
                len(problem.inputs),
                size=(records, plan.steps // records, problem.batch),
                dtype=np.int32,
            )
            for seed in range(plan.seeds)
        ]
    )

    @jax.jit
    def run(params: Any, batches: Any, inputs: Any, targets: Any) -> Any:
        def one(rate_and_seed: Any) -> Any:
            rate, seed = rate_and_seed
            rescale = optimizer(rate)

            def step(carry: Any, batch: jax.Array) -> Any:
                params, state, count = carry
                gradients = jax.grad(problem.loss)(params, inputs[batch], targets[batch])
                updates, state = rescale.update(gradients, state, params)
                return (apply(params, updates, count), state, count + 1), None

            def record(carry: Any, batches: jax.Array) -> Any:
                after, _ = jax.lax.scan(step, carry, batches)
                shown = slice(problem.measured)
                moved = [
                    jnp.sum(a != b)
                    for a, b in zip(*map(jax.tree.leaves, (carry[0], after[0])), strict=True)
                ]
                loss = problem.loss(after[0], inputs[shown], targets[shown])
                return after, (loss, jnp.stack(moved).sum())

            start = jax.tree.map(lambda leaf: leaf[seed], params)
            carry = (start, rescale.init(start), jnp.zeros((), jnp.int32))
            return jax.lax.scan(record, carry, batches[seed])[1]

        # One after the other: vmap takes twice as long to compile here, and runs no faster.
        return jax.lax.map(one, (rates.ravel(), seeds.ravel()))

    losses, moved = run(params, batches, problem.inputs, problem.targets)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(params))
    return (
        np.asarray(losses, np.float64).reshape(*rates.shape, -1),
        np.asarray(moved, np.float64).reshape(*rates.shape, -1) / size,
    )


def cell(recorded: dict[str, np.ndarray], **settings: Any) -> dict[str, Any]:
    """What is kept of one setting: final losses of seeds, and the curve of their mean.

    ``recorded`` has for each storage the losses, (seeds, records). Final is the mean of the
    last tenth of the records.
    """
    return settings | {
        "final": {
            name: _rounded(losses[:, -max(1, losses.shape[1] // 10) :].mean(axis=1))
            for name, losses in recorded.items()
        },
        "curves": {
            name: {
                "mean": _rounded(losses.mean(axis=0)),
                "deviation": _rounded(losses.std(axis=0, ddof=1)),
            }
            for name, losses in recorded.items()
        },
    }


def study(
    problem: Problem,
    plan: Plan,
    decay_rates: Sequence[float],
    storages: Sequence[str] = tuple(STORAGES),
) -> list[dict[str, Any]]:
    """A cell for each learning rate and decay rate."""
    cells = []
    for b2 in decay_rates:
        recorded = {
            name: _shown(
                f"{problem.name}, b2 {b2}, {name}",
                problem,
                functools.partial(amsgrad_jax.amsgrad, b2=b2, storage=STORAGES[name]),
                plan,
            )[0]
            for name in storages
        }
        cells += [
            cell(
                {name: losses[i] for name, losses in recorded.items()},
                problem=problem.name,
                learning_rate=rate,
                b2=b2,
                steps=plan.steps,
            )
            for i, rate in enumerate(plan.rates)
        ]
    return sorted(cells, key=lambda cell: cell["learning_rate"])


def long_run(plan: Plan) -> dict[str, Any]:
    """FULL, TINY and nearest bfloat16 for long, with an L2 penalty and a cosine down to 0.

    The penalty keeps the network from learning its data by heart, after which the loss would
    be a matter of its last digits; its optimum does not move with the size of the updates.
    """

    def optimizer(storage: amsgrad_jax.Storage, rate: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, plan.steps)
        return optax.chain(
            optax.add_decayed_weights(1e-3), amsgrad_jax.amsgrad(schedule, storage=storage)
        )

    recorded = {
        name: _shown(
            f"long run, {name}", mlp(), functools.partial(optimizer, STORAGES[name]), plan
        )[0][0]
        for name in (storage_report.FULL, "TINY", "nearest bfloat16")
    }
    return cell(recorded, learning_rate=plan.rates[0], b2=0.999, l2=1e-3, steps=plan.steps)


def stall(plan: Plan) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Parameters in bfloat16, and all moments as Optax has them, or coded.

    Ours in Optax's convention, so that only the rounding differs. Returns the bytes of a
    parameter and its state, and a cell for each learning rate.
    """
    ours = functools.partial(amsgrad_jax.amsgrad, convention="optax")
    half, chance = jnp.bfloat16, amsgrad_jax.stochastic_apply_updates
    ways: dict[str, tuple[Any, Any, Apply]] = {
        "float32, FULL": (ours, jnp.float32, _plain),
        "bfloat16, optax.amsgrad": (optax.amsgrad, half, _plain),
        "bfloat16, COMPACT, apply_updates": (
            functools.partial(ours, storage="compact"),
            half,
            _plain,
        ),
        "bfloat16, COMPACT, stochastic_apply_updates": (
            functools.partial(ours, storage="compact"),
            half,
            chance,
        ),
        "bfloat16, TINY, stochastic_apply_updates": (
            functools.partial(ours, storage="tiny"),
            half,
            chance,
        ),
    }
    runs = {
        name: _shown(name, mlp(), optimizer, plan, dtype=dtype, apply=apply)
        for name, (optimizer, dtype, apply) in ways.items()
    }
    sizes = {
        name: jnp.dtype(dtype).itemsize + state_bytes(optimizer(1e-3), dtype)
        for name, (optimizer, dtype, _) in ways.items()
    }
    cells = [
        cell(
            {name: losses[i] for name, (losses, _) in runs.items()},
            learning_rate=rate,
            b2=0.999,
            steps=plan.steps,
            moving={name: _rounded(moved[i, :, -1]) for name, (_, moved) in runs.items()},
        )
        for i, rate in enumerate(plan.rates)
    ]
    return sizes, cells


def state_bytes(optimizer: optax.GradientTransformation, dtype: Any = jnp.float32) -> float:
    """Bytes of state for each parameter, read off the arrays; scalars are not counted."""
    state = optimizer.init(jnp.zeros(1000, dtype))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) / 1000


def _shown(caption: str, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    losses, moved = train(*args, **kwargs)
    finals = ", ".join(f"{loss:.4g}" for loss in losses[..., -1].mean(axis=1))
    print(f"{caption}: loss {finals}", flush=True)
    return losses, moved


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def main(quick: bool) -> None:
    if quick:
        cells = study(mlp(), Plan(50, 2, (1e-3,)), (0.999,), (storage_report.FULL, "TINY"))
        print(f"\n{storage_report.study_table(cells)}\n")
        return
    results: dict[str, Any] = {}
    results |= machine.describe("amsgrad_jax", "jax", "optax", "numpy", "scikit-learn")
    results["stall_bytes"], results["stall"] = stall(Plan(3000, 8, (1e-4, 1e-3)))
    results["long"] = long_run(Plan(50_000, 4, (1e-3,)))
    results["cells"] = [
        *study(mlp(), Plan(3000, 16, (1e-4, 1e-3)), (0.99, 0.999)),
        *study(convolutional(), Plan(2000, 8, (1e-3, 3e-3)), (0.99, 0.999)),
        *study(transformer(), Plan(1500, 8, (1e-3, 3e-3)), (0.99, 0.999)),
    ]
    for table in storage_report.tables(results).values():
        print(f"\n{table}")
    publish(results)


def publish(results: storage_report.Results) -> None:
    """Writes the results, draws the figures and refreshes the tables of the page."""
    figures = {
        "storage_curves.png": storage_report.curves(results),
        "storage_differences.png": storage_report.differences(results),
        "storage_failures.png": storage_report.failures(results),
    }
    pages.publish("memory.md", "storage", results, storage_report.tables(results), figures)
