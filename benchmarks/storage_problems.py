"""What the study of storages trains: three small networks and the data that they learn."""

import functools
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax.demo import problems
from benchmarks import section5

# Modules of the standard library whose source is the text: those that every Python 3.11 to
# 3.13 has. Their text differs a little from version to version, and so do the losses.
_MODULES = """
    argparse ast calendar codecs configparser contextlib copy csv dataclasses difflib fractions
    functools heapq inspect textwrap
"""


class Problem(NamedTuple):
    """A network and all its examples; the loss is the mean cross-entropy.

    ``inputs`` and ``targets`` have one example in each row. ``measured`` is how many of them,
    from the first on, the recorded training loss is the mean of.
    """

    name: str
    init: Callable[[jax.Array], Any]
    network: Callable[[Any, jax.Array], jax.Array]
    inputs: np.ndarray
    targets: np.ndarray
    batch: int
    measured: int

    def loss(self, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = self.network(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def mlp() -> Problem:
    """Scikit-learn's 1797 digits of 8 by 8 pixels; two hidden layers of 100 units."""
    images, labels = problems.digit_images()
    init = functools.partial(_layers, ((64, 100), (100, 100), (100, 10)))
    return Problem("MLP, digits", init, problems.network, images, labels, 64, len(images))


def convolutional() -> Problem:
    """The same digits; the convolutional network of section 5, of 8 and 16 channels."""
    images, labels = problems.digit_images()

    def network(params: Any, inputs: jax.Array) -> jax.Array:
        layers = [(layer["kernel"], layer["bias"]) for layer in params]
        return section5.convolution(
            dict(zip(("first", "second", "last"), layers, strict=True)), inputs.reshape(-1, 8, 8)
        )

    init = functools.partial(_layers, ((9, 8), (72, 16), (64, 10)))
    return Problem("CNN, digits", init, network, images, labels, 64, len(images))


def transformer() -> Problem:
    """Characters of Python's source code: one layer, width 48, 4 heads, 32 characters."""
    width, heads, context = 48, 4, 32
    windows, characters = _source_code(context + 1)

    def init(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, 7))
        return {
            "characters": 0.1 * jax.random.normal(next(keys), (characters, width)),
            "positions": 0.1 * jax.random.normal(next(keys), (context, width)),
            "attention": _dense(next(keys), width, 3 * width),
            "joined": _dense(next(keys), width, width),
            "up": _dense(next(keys), width, 4 * width),
            "down": _dense(next(keys), 4 * width, width),
            "out": _dense(next(keys), width, characters),
            "norms": jnp.ones((3, width)),
        }

    def network(params: Any, inputs: jax.Array) -> jax.Array:
        signal = params["characters"][inputs] + params["positions"]
        projected = _affine(params["attention"], _normed(params["norms"][0], signal))
        query, key, value = jnp.split(projected.reshape(*inputs.shape, heads, -1), 3, axis=-1)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        signal += _affine(params["joined"], mixed.reshape(signal.shape))
        hidden = jax.nn.gelu(_affine(params["up"], _normed(params["norms"][1], signal)))
        signal += _affine(params["down"], hidden)
        return _affine(params["out"], _normed(params["norms"][2], signal))

    return Problem(
        "transformer, source code", init, network, windows[:, :-1], windows[:, 1:], 16, 256
    )


def _source_code(length: int) -> tuple[np.ndarray, int]:
    """Windows of text in a random order, as numbers of characters, and how many there are."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join((folder / f"{module}.py").read_text("utf-8") for module in _MODULES.split())
    known, numbers = np.unique(list(text), return_inverse=True)
    windows = numbers[: len(numbers) // length * length].reshape(-1, length).astype(np.int32)
    return np.random.default_rng(0).permutation(windows), len(known)


def _dense(key: jax.Array, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (fan_in, fan_out)) / np.sqrt(fan_in)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)}


def _layers(sizes: Sequence[tuple[int, int]], key: jax.Array) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes))
    return [_dense(key, *size) for key, size in zip(keys, sizes, strict=True)]


def _affine(layer: dict[str, jax.Array], signal: jax.Array) -> jax.Array:
    return signal @ layer["kernel"] + layer["bias"]


def _normed(scale: jax.Array, signal: jax.Array) -> jax.Array:
    return scale * signal * jax.lax.rsqrt(jnp.mean(signal**2, axis=-1, keepdims=True) + 1e-6)
