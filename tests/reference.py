"""The four conventions in float64 numpy, each written out from its source.

Nothing here knows the package. A step takes and returns numpy arrays; ``Moments``
are raw averages and the running maximum, as in the sources.
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    m: np.ndarray
    v: np.ndarray
    x: np.ndarray


def zeros(shape, dtype=np.float64) -> Moments:
    return Moments(np.zeros(shape, dtype), np.zeros(shape), np.zeros(shape))


def step(convention, g, moments, t, b1, b2, eps, eps_root=0.0, nesterov=False):
    """Returns the update direction of step ``t`` (from 1) and the new moments."""
    m = b1 * moments.m + (1 - b1) * g
    v = b2 * moments.v + (1 - b2) * np.abs(g) ** 2
    c1, c2 = -np.expm1(t * np.log(b1)) if b1 else 1.0, -np.expm1(t * np.log(b2)) if b2 else 1.0
    x = np.maximum(moments.x, v / c2 if convention == "optax" else v)
    root = np.sqrt(x + eps_root)
    momentum = m
    if nesterov:
        # optax.nadam; without bias correction both corrections are 1.
        c1_next = 1 - b1 ** (t + 1)
        corrected = convention != "paper"
        momentum = b1 * m / (c1_next if corrected else 1) + (1 - b1) * g / (c1 if corrected else 1)
    elif convention != "paper":
        momentum = m / c1
    with np.errstate(invalid="ignore", divide="ignore"):
        u = {
            "paper": lambda: momentum / (root + eps),
            "pytorch": lambda: momentum / (root / np.sqrt(c2) + eps),
            "keras": lambda: momentum * np.sqrt(c2) / (root + eps),
            "optax": lambda: momentum / (root + eps),
        }[convention]()
    return np.where(x + eps_root == 0, 0, u), Moments(m, v, x)


def run(convention, gradients, **hyperparameters):
    """Yields update and moments after each gradient of a sequence."""
    moments = None
    for t, g in enumerate(gradients, start=1):
        g = np.asarray(g, np.complex128 if np.iscomplexobj(g) else np.float64)
        if moments is None:
            moments = zeros(g.shape, g.dtype)
        u, moments = step(convention, g, moments, t, **hyperparameters)
        yield u, moments
