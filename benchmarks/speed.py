"""Time to trace and compile a step, and time of a step, beside ``optax.amsgrad``.

The step is update and apply under jit, with params and state donated. Both sides run
in one process, taking turns; figures are medians.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import amsgrad_jax


def _prepare(optimizer: optax.GradientTransformation, leaves: int, shape: tuple[int, ...]) -> Any:
    params = {f"leaf{i}": jnp.full(shape, 0.1) for i in range(leaves)}
    gradients = jax.tree.map(lambda p: 0.3 * p, params)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)), params, jax.jit(optimizer.init)(params), gradients


def measure(
    optimizers: Sequence[optax.GradientTransformation],
    leaves: int,
    shape: tuple[int, ...],
    compiles: int,
    steps: int,
) -> list[list[float]]:
    """Returns for each optimizer: seconds to trace and lower, to compile, for a step."""
    traces, compilations, times, running = ([[] for _ in optimizers] for _ in range(4))
    for _ in range(compiles):
        for i, optimizer in enumerate(optimizers):
            step, *arguments = _prepare(optimizer, leaves, shape)
            jax.clear_caches()
            start = time.perf_counter()
            lowered = step.lower(*arguments)
            middle = time.perf_counter()
            compiled = lowered.compile()
            end = time.perf_counter()
            traces[i].append(middle - start)
            compilations[i].append(end - middle)
            running[i] = [compiled, *arguments]
    for _ in range(steps):
        for i, (compiled, params, state, gradients) in enumerate(running):
            start = time.perf_counter()
            params, state = jax.block_until_ready(compiled(params, state, gradients))
            times[i].append(time.perf_counter() - start)
            running[i][1:3] = params, state
    return [
        [statistics.median(column[i]) for column in (traces, compilations, times)]
        for i in range(len(optimizers))
    ]


def main(quick: bool) -> None:
    print("Trace + lower and compile (s), and one donated step (ms): ours / optax.amsgrad")
    sizes = [(200, (32, 32), 5, 200), (1000, (32, 32), 3, 100), (1, (32_000_000,), 5, 30)]
    if quick:
        sizes = [(20, (32, 32), 1, 5), (1, (100_000,), 1, 5)]
    for leaves, shape, compiles, steps in sizes:
        optimizers = [amsgrad_jax.amsgrad(1e-3), optax.amsgrad(1e-3)]
        ours, theirs = measure(optimizers, leaves, shape, compiles, steps)
        print(
            f"{leaves:5} x {shape!s:14}"
            f"  trace {ours[0]:.2f} / {theirs[0]:.2f}  compile {ours[1]:.2f} / {theirs[1]:.2f}"
            f"  together {sum(ours[:2]):.2f} / {sum(theirs[:2]):.2f}"
            f" = {sum(ours[:2]) / sum(theirs[:2]):.2f}"
            f"  step {1e3 * ours[2]:.2f} / {1e3 * theirs[2]:.2f} = {ours[2] / theirs[2]:.2f}",
            flush=True,
        )
    print()
