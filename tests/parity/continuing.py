"""Optimizers that go on from a state, on the common gradients, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity import sequences

LR = 2.0**-10  # exact in float32, too, which Keras holds it in
MORE = 100


def gradients(start: int, stop: int) -> dict[str, np.ndarray]:
    """The gradients of the steps after ``start``, up to ``stop``."""
    return {name: array[start:stop] for name, array in sequences.gradients().items()}


@functools.cache
def runner(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Compiles the loop that returns parameters and states after each step."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    return jax.jit(lambda params, state, steps: jax.lax.scan(step, (params, state), steps)[1])


@functools.cache
def _history(optimizer: optax.GradientTransformation) -> Any:
    start = sequences.start()
    steps = gradients(0, 300 + MORE)
    # As numpy arrays, which are faster to take single steps from.
    return jax.device_get(runner(optimizer)(start, optimizer.init(start), steps))


def after(optimizer: optax.GradientTransformation, k: int) -> tuple[Any, Any]:
    """Parameters and state after ``k`` steps, up to 300."""
    if k == 0:
        start = sequences.start()
        return start, optimizer.init(start)
    return jax.tree.map(lambda x: jnp.asarray(x[k - 1]), _history(optimizer))


def expected(optimizer: optax.GradientTransformation, k: int) -> Any:
    """The parameters after each of ``MORE`` steps after ``k``."""
    return jax.tree.map(lambda x: x[k : k + MORE], _history(optimizer)[0])


def go_on(optimizer: optax.GradientTransformation, params: Any, state: Any, k: int) -> Any:
    """The parameters after each of ``MORE`` steps after ``k``, from a state."""
    return runner(optimizer)(params, state, gradients(k, k + MORE))[0]


def assert_same(got: Any, right: Any) -> None:
    for name, array in right.items():
        # Steps are of the size of LR; 1e-13 is 1e-10 of that.
        np.testing.assert_allclose(got[name], array, rtol=1e-10, atol=1e-13, err_msg=name)
