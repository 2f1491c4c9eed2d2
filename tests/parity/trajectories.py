"""Runs a library over a sequence of gradients and returns where its parameters were.

A trajectory is one numpy array: a row for the start and one for each step, a
column for each parameter. The libraries other than Optax are imported by the
functions that run them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from tests.parity import sequences
from tests.parity.cases import Case
from tests.variants import enable_x64

Tree = Mapping[str, np.ndarray]


def _flat(start: Tree, steps: Tree) -> np.ndarray:
    """One trajectory from the arrays at the start and, stacked, after each step."""
    arrays = [np.concatenate([start[name][np.newaxis], steps[name]]) for name in start]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _cast(tree: Tree, dtype: str) -> dict[str, np.ndarray]:
    return {name: array.astype(dtype) for name, array in tree.items()}


def is_double(dtype: str) -> bool:
    """Whether JAX has ``dtype`` only with x64 enabled."""
    return dtype in ("float64", "complex128")


def of_optax(
    optimizer: optax.GradientTransformation, gradients: Tree, start: Tree, dtype: str
) -> np.ndarray:
    """The trajectory of a gradient transformation: ours, or one of Optax."""

    @jax.jit
    def run(params: Any, gradients: Any) -> Any:
        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]

    start = _cast(start, dtype)
    with enable_x64(is_double(dtype)):
        steps = jax.device_get(run(start, _cast(gradients, dtype)))
    trajectory = _flat(start, steps)
    assert trajectory.dtype == dtype
    return trajectory


def of_torch(case: Case, gradients: Tree, start: Tree, dtype: str, **options: Any) -> np.ndarray:
    """The trajectory of PyTorch's optimizer; ``options`` choose among its implementations."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)  # the arrays are small; more threads only wait for each other
    start, gradients = _cast(start, dtype), _cast(gradients, dtype)
    params = {name: torch.tensor(array) for name, array in start.items()}
    groups = [
        {
            "params": [params[name] for name in group.names],
            "lr": group.lr,
            "betas": group.betas,
            "eps": group.eps,
            "weight_decay": group.weight_decay,
        }
        for group in case.groups
    ]
    optimizer = getattr(torch.optim, case.optimizer)(groups, amsgrad=True, **options)
    steps = {name: np.empty_like(array) for name, array in gradients.items()}
    for t in range(sequences.STEPS):
        for name, param in params.items():
            param.grad = torch.tensor(gradients[name][t])
        optimizer.step()
        for name, param in params.items():
            steps[name][t] = param.numpy()
    return _flat(start, steps)


def keras_with_jax() -> Any:
    """Imports Keras on its JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"  # read when keras is first imported
    keras = importlib.import_module("keras")
    assert keras.backend.backend() == "jax", "keras was imported before, with another backend"
    return keras


def of_keras(make: Callable[[Any], Any], gradients: Tree, start: Tree, dtype: str) -> np.ndarray:
    """The trajectory of the Keras optimizer that ``make(keras)`` returns."""
    keras = keras_with_jax()
    start = _cast(start, dtype)
    with enable_x64(is_double(dtype)):
        variables = [keras.Variable(value, dtype=dtype, name=name) for name, value in start.items()]
        optimizer = make(keras)
        optimizer.build(variables)

        def step(carry: Any, gradients: Any) -> Any:
            params, state = carry
            params, state = optimizer.stateless_apply(state, gradients, params)
            return (params, state), params

        first = ([v.value for v in variables], [v.value for v in optimizer.variables])
        stacked = list(_cast(gradients, dtype).values())
        steps = jax.device_get(jax.jit(lambda *args: jax.lax.scan(step, *args)[1])(first, stacked))
    trajectory = _flat(start, dict(zip(start, steps, strict=True)))
    assert trajectory.dtype == dtype
    return trajectory
