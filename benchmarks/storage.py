"""Training with a state of 12 and of 4 bytes per parameter: losses, seed by seed.

Three networks, two learning rates, two or three decay rates, several seeds; one long run;
parameters in bfloat16; and how exact packed moments are. Half an hour on one core. Writes
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
from amsgrad_jax._state import Storage
from benchmarks import machine, pages, storage_report
from benchmarks.storage_problems import Problem, convolutional, mlp, transformer

STORAGES: dict[str, Storage] = {storage_report.FULL: "full", storage_report.PACKED: "packed"}

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
            for name in STORAGES
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
    """Both storages for long, with an L2 penalty and a cosine down to 0.

    The penalty keeps the network from learning its data by heart, after which the loss would
    be a matter of its last digits; its optimum does not move with the size of the updates.
    """

    def optimizer(storage: Storage, rate: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, plan.steps)
        return optax.chain(
            optax.add_decayed_weights(1e-3), amsgrad_jax.amsgrad(schedule, storage=storage)
        )

    recorded = {
        name: _shown(
            f"long run, {name}", mlp(), functools.partial(optimizer, STORAGES[name]), plan
        )[0][0]
        for name in STORAGES
    }
    return cell(recorded, learning_rate=plan.rates[0], b2=0.999, l2=1e-3, steps=plan.steps)


def stall(plan: Plan) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Parameters in bfloat16, and all moments as Optax has them, or packed.

    Ours in Optax's convention, so that only the rounding differs. Returns the bytes of a
    parameter and its state, and a cell for each learning rate.
    """
    ours = functools.partial(amsgrad_jax.amsgrad, convention="optax")
    packed = functools.partial(ours, storage="packed")
    half, stochastic = jnp.bfloat16, amsgrad_jax.stochastic_apply_updates
    ways: dict[str, tuple[Any, Any, Apply]] = {
        "float32, full": (ours, jnp.float32, _plain),
        "bfloat16, optax.amsgrad": (optax.amsgrad, half, _plain),
        "bfloat16, packed, apply_updates": (packed, half, _plain),
        "bfloat16, packed, stochastic_apply_updates": (packed, half, stochastic),
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


def exactness(steps: int, elements: int = 4096) -> list[dict[str, Any]]:
    """How far packed moments are from float32 ones after so many steps, by ``b2``.

    Gradients of constant size over 30 octaves; and normal ones, whose squares are chi-squared,
    of scales that fill an octave. In % of the float32 value: mean and standard deviation over
    elements, of ``nu`` and of the root of ``nu_max``.
    """
    scales = {"constant": jnp.exp2(jnp.linspace(-20, 10, elements))}
    scales["normal"] = jnp.exp2(jnp.linspace(0, 1, elements))

    @functools.partial(jax.jit, static_argnames=("kind", "b2", "steps"))
    def run(kind: str, b2: float, steps: int) -> Any:
        optimizers = [amsgrad_jax.scale_by_amsgrad(b2=b2, storage=s) for s in STORAGES.values()]

        def step(t: jax.Array, states: Any) -> Any:
            gradients = scales[kind]
            if kind == "normal":
                gradients *= jax.random.normal(jax.random.key(t), gradients.shape)
            return [o.update(gradients, s)[1] for o, s in zip(optimizers, states, strict=True)]

        start = [optimizer.init(scales[kind]) for optimizer in optimizers]
        full, packed = jax.lax.fori_loop(0, steps, step, start)
        return full, amsgrad_jax.convert_storage(packed, "full")

    rows = []
    for kind, b2, length in (
        ("constant", 0.999, steps),
        ("constant", 0.9999, steps),
        ("normal", 0.99, steps // 5),
        ("normal", 0.999, steps // 5),
        ("normal", 0.9999, steps // 5),
    ):
        full, packed = run(kind, b2, length)
        nu = 100 * (np.asarray(packed.nu / full.nu, np.float64) - 1)
        root = 100 * (np.sqrt(np.asarray(packed.nu_max / full.nu_max, np.float64)) - 1)
        row = {"gradients": kind, "b2": b2, "steps": length}
        rows.append(
            row
            | {
                name: _rounded(np.array([values.mean(), values.std()]))
                for name, values in (("nu", nu), ("root", root))
            }
        )
    return rows


def main(quick: bool) -> None:
    if quick:
        cells = study(mlp(), Plan(50, 2, (1e-3,)), (0.999,))
        print(f"\n{storage_report.study_table(cells)}\n")
        print(f"{storage_report.exactness_table(exactness(100, 16))}\n")
        return
    results: dict[str, Any] = {}
    results |= machine.describe("amsgrad_jax", "jax", "optax", "numpy", "scikit-learn")
    results["exactness"] = exactness(100_000)
    results["stall_bytes"], results["stall"] = stall(Plan(3000, 8, (1e-4, 1e-3)))
    results["cells"] = [
        *study(mlp(), Plan(3000, 16, (1e-4, 1e-3)), (0.99, 0.999, 0.9999)),
        *study(convolutional(), Plan(2000, 8, (1e-3, 3e-3)), (0.99, 0.999, 0.9999)),
        *study(transformer(), Plan(1500, 8, (1e-3, 3e-3)), (0.99, 0.999)),
    ]
    results["long"] = long_run(Plan(50_000, 4, (1e-3,)))
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
