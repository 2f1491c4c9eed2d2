"""The problems: their data, their losses, and their initial parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array: TypeAlias = jax.Array | np.ndarray
Layers: TypeAlias = list[dict[str, jax.Array]]


class Online(NamedTuple):
    """Linear losses ``f_t(x) = slopes[t-1] * x`` on [-1, 1]; in the long run -1 is best.

    The gradient of ``f_t`` is its slope at every ``x``. The step size is
    ``alpha / sqrt(t)``; ``b1`` and ``b2`` are those of Adam and AMSGrad.
    """

    name: str
    description: str
    slopes: np.ndarray
    alpha: float
    b1: float
    b2: float


def linear(x: jax.Array, slope: jax.Array) -> jax.Array:
    """The loss of these problems."""
    return slope * x


def onto_interval(x: jax.Array) -> jax.Array:
    """The projection onto [-1, 1]."""
    return optax.projections.projection_box(x, -1.0, 1.0)


def online(steps: int, seed: int) -> tuple[Online, ...]:
    """The examples of section 3 of Reddi, Kale and Kumar (2018), ``steps`` long.

    All have a rare large positive slope, and frequent small negative slopes whose sum is
    smaller. Adam's average of squares soon loses the large one, and the small ones move Adam to
    the wrong end. The first two are those of the paper's figure 1, the last is that of its
    Theorem 1 for C = 3.
    """
    rare = np.random.default_rng(seed).random(steps) < 0.01
    large = 3.0
    return (
        Online(
            name="online: periodic",
            description="slope 1010 at every 101st step, else -10",
            slopes=np.resize(np.array([1010.0] + 100 * [-10.0], np.float32), steps),
            alpha=0.5,
            b1=0.9,
            b2=0.99,
        ),
        Online(
            name="online: stochastic",
            description="slope 1010 with probability 1/100, else -10",
            slopes=np.where(rare, np.float32(1010.0), np.float32(-10.0)),
            alpha=0.5,
            b1=0.9,
            b2=0.99,
        ),
        Online(
            name="online: theorem 1",
            description="slope 3 at every 3rd step, else -1",
            slopes=np.resize(np.array([large, -1.0, -1.0], np.float32), steps),
            alpha=0.5,
            b1=0.0,
            b2=1.0 / (1.0 + large**2),
        ),
    )


class Task(NamedTuple):
    """A network to train.

    ``batches`` has the shape (epochs, batches of an epoch, examples of a batch) and contains
    indices of examples. ``measure`` is called before the first epoch and after each.
    """

    params: Layers
    inputs: np.ndarray
    targets: np.ndarray
    batches: np.ndarray
    loss: Callable[[Any, Array, Array], jax.Array]
    measure: Callable[[Any], dict[str, jax.Array]]


def regression(steps: int, seed: int) -> Task:
    """Random targets from random inputs: the example of PyTorch's tutorial.

    64 examples, 1000 numbers in, 100 hidden units, 10 numbers out, the sum of squared
    errors, and all examples in every step.
    """
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((64, 1000), np.float32)
    targets = rng.standard_normal((64, 10), np.float32)

    def loss(params: Layers, inputs: Array, targets: Array) -> jax.Array:
        return jnp.sum((network(params, inputs) - targets) ** 2)

    return Task(
        params=_init(rng, (1000, 100, 10)),
        inputs=inputs,
        targets=targets,
        batches=np.broadcast_to(np.arange(64), (steps, 1, 64)),
        loss=loss,
        measure=lambda params: {"loss": loss(params, inputs, targets)},
    )


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits: 1797 rows of 64 grey values from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16.0).astype(np.float32), labels.astype(np.int32)


def digits(epochs: int, seed: int) -> Task:
    """Scikit-learn's 1797 handwritten digits of 8 by 8 pixels, half of them for the test.

    Two hidden layers of 100 units, cross-entropy, batches of 64.
    """
    inputs, targets = digit_images()
    rng = np.random.default_rng(seed)
    test, train = np.split(rng.permutation(len(inputs)), [len(inputs) // 2])
    # An epoch leaves out the few examples that do not fill a batch, others each time.
    full = len(train) // 64 * 64
    batches = np.stack([rng.permutation(train)[:full].reshape(-1, 64) for _ in range(epochs)])

    def loss(params: Layers, inputs: Array, targets: Array) -> jax.Array:
        logits = network(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(targets)).mean()

    def measure(params: Layers) -> dict[str, jax.Array]:
        correct = network(params, inputs[test]).argmax(axis=1) == targets[test]
        return {
            "training loss": loss(params, inputs[train], targets[train]),
            "test accuracy": correct.mean(),
        }

    return Task(_init(rng, (64, 100, 100, 10)), inputs, targets, batches, loss, measure)


def _init(rng: np.random.Generator, sizes: Sequence[int]) -> Layers:
    """Weights and biases as in PyTorch's ``nn.Linear``: uniform within 1/sqrt(fan_in)."""

    def uniform(fan_in: int, *shape: int) -> jax.Array:
        return jnp.asarray(rng.uniform(-1, 1, shape) / np.sqrt(fan_in), jnp.float32)

    return [
        {"kernel": uniform(fan_in, fan_in, fan_out), "bias": uniform(fan_in, fan_out)}
        for fan_in, fan_out in itertools.pairwise(sizes)
    ]


def network(params: Layers, inputs: Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    *hidden, last = params
    signal = jnp.asarray(inputs)
    for layer in hidden:
        signal = jax.nn.relu(signal @ layer["kernel"] + layer["bias"])
    return signal @ last["kernel"] + last["bias"]
