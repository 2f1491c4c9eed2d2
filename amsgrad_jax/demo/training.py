"""The loop that trains a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import numpy as np
import optax

from amsgrad_jax.demo.problems import Task


def train(
    optimizer: optax.GradientTransformation, task: Task, epochs: Iterable[np.ndarray]
) -> Iterator[dict[str, jax.Array]]:
    """Trains a network; yields what the task measures, at the start and after each epoch.

    The epochs are the task's, possibly in a progress bar.
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
