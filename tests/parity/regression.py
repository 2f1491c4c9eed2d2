"""A small network, written in JAX and in PyTorch, whose own gradients train it.

Here each library differentiates its own loss, so that a difference in the
parameters comes back in the next gradients. Everything is in float64.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity import sequences
from tests.variants import enable_x64

LR = 0.01


def _data() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(1).standard_normal((64, 4))
    return inputs, np.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "hidden": rng.standard_normal((4, 16)) / 2,
        "hidden_bias": np.zeros(16),
        "output": rng.standard_normal((16, 1)) / 4,
        "output_bias": np.zeros(1),
    }


def _flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays.values()])


def of_optax(optimizer: optax.GradientTransformation) -> np.ndarray:
    """The trajectory of the weights under a gradient transformation, in JAX."""
    inputs, targets = _data()

    def loss(w: dict[str, jax.Array]) -> jax.Array:
        hidden = jnp.tanh(inputs @ w["hidden"] + w["hidden_bias"])
        return jnp.mean(jnp.square(hidden @ w["output"] + w["output_bias"] - targets))

    @jax.jit
    def step(weights, state):
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    with enable_x64(True):
        weights = {name: jnp.asarray(array) for name, array in _weights().items()}
        state = optimizer.init(weights)
        rows = [_flat(_weights())]
        for _ in range(sequences.STEPS):
            weights, state = step(weights, state)
            rows.append(_flat(jax.device_get(weights)))
    return np.stack(rows)


def of_torch(optimizer: str) -> np.ndarray:
    """The same under ``torch.optim.Adam`` or ``AdamW``, in PyTorch."""
    torch = importlib.import_module("torch")
    inputs, targets = (torch.tensor(array) for array in _data())
    w = {name: torch.tensor(array, requires_grad=True) for name, array in _weights().items()}
    stepper = getattr(torch.optim, optimizer)(list(w.values()), lr=LR, amsgrad=True)
    rows = [_flat(_weights())]
    for _ in range(sequences.STEPS):
        hidden = torch.tanh(inputs @ w["hidden"] + w["hidden_bias"])
        loss = torch.mean(torch.square(hidden @ w["output"] + w["output_bias"] - targets))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        rows.append(_flat({name: array.detach().numpy() for name, array in w.items()}))
    return np.stack(rows)
