"""The loops: the online game in one scan, the training of a network, and regret."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax.demo.problems import Task

# Steps in one call: enough that the call costs nothing, few enough to watch the progress.
_CHUNK: Final = 100_000


def play(optimizer: optax.GradientTransformation, slopes: np.ndarray) -> Iterator[np.ndarray]:
    """Plays against losses ``slopes[t-1] * x``, from x = 0 and clipped to [-1, 1].

    Yields the points ``x_1, x_2, ...`` in chunks, each chosen before its loss is known.
    """

    def step(carry: Any, slope: jax.Array) -> tuple[Any, jax.Array]:
        x, state = carry
        update, state = optimizer.update(slope, state, x)
        x_next = optax.projections.projection_box(optax.apply_updates(x, update), -1.0, 1.0)
        return (x_next, state), x

    play_chunk = jax.jit(functools.partial(jax.lax.scan, step))

    x = jnp.zeros((), jnp.float32)
    # One scalar after another is work for a CPU, also where there is a GPU.
    carry = jax.device_put((x, optimizer.init(x)), jax.local_devices(backend="cpu")[0])
    for start in range(0, len(slopes), _CHUNK):
        carry, played = play_chunk(carry, slopes[start : start + _CHUNK])
        yield np.asarray(played)


def average_regret(slopes: np.ndarray, played: np.ndarray) -> np.ndarray:
    """For every t, how much more the points so far cost than the best fixed point, over t.

    The best fixed point in [-1, 1] is an end of it, so that its cost is minus the
    absolute value of the sum of the slopes. All in float64: the sums grow to billions.
    """
    slopes = slopes.astype(np.float64)
    return (np.cumsum(slopes * played) + np.abs(np.cumsum(slopes))) / np.arange(1, len(slopes) + 1)


def train(
    optimizer: optax.GradientTransformation, task: Task, epochs: Iterable[np.ndarray]
) -> Iterator[dict[str, jax.Array]]:
    """Trains a network; yields what the task measures, at first and after each epoch.

    The epochs are the task's, perhaps wrapped into a progress bar.
    """

    @jax.jit
    def step(
        params: optax.Params, state: optax.OptState, inputs: jax.Array, targets: jax.Array
    ) -> tuple[optax.Params, optax.OptState]:
        gradients = jax.grad(task.loss)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    measure = jax.jit(task.measure)
    params, state = task.params, optimizer.init(task.params)
    yield measure(params)
    for epoch in epochs:
        for batch in epoch:
            params, state = step(params, state, task.inputs[batch], task.targets[batch])
        yield measure(params)
