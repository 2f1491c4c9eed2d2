"""The gradients and starting parameters that all libraries get, made from fixed seeds.

Everything here is an integer times a power of two with at most 16 significant
bits. So it is the same in float32 and in float64, and the same on every machine:
no library function is involved whose last bit could differ.
"""

from __future__ import annotations

import hashlib

import numpy as np

STEPS = 500
SHAPES = {"scalar": (), "single": (1,), "vector": (7,), "matrix": (5, 4), "tensor": (2, 3, 2, 2)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())

# Every magnitude lies in 2**-20 to 2**20, about 1e-6 to 1e6, or is a zero.
_LARGEST = 20
_MANTISSA = 2**16


def _patterns() -> tuple[np.ndarray, np.ndarray]:
    """For each pattern and step, the power of two above an element's scale, and a factor."""
    t = np.arange(STEPS)
    zero, one = np.zeros_like(t), np.ones_like(t)
    spike = np.where(t < 30, 0, np.maximum(10 - (t - 30) // 8, 0))
    bump = np.where(t < 30, 0, np.maximum(4 - (t - 30) // 8, 0))
    sweep = np.abs(t - STEPS // 2) * -2 * _LARGEST // (STEPS // 2)  # up from 1e-6, and down
    patterns = [
        (zero, one),
        (spike, one),
        (bump, one),
        (zero, np.where((t >= 100) & (t < 200), 0, 1)),  # a pause
        (zero, np.where(t < 50, 0, 1)),  # a late start
        (zero, np.where(t % 2 == 0, 1, -1)),  # a sign flip in each step
        (sweep, one),
    ]
    powers, factors = zip(*patterns, strict=True)
    return np.stack(powers), np.stack(factors)


def _split(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Makes of rows, one for each step, arrays of the shapes above."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = np.split(rows, ends[:-1], axis=1)
    return {
        name: part.reshape(len(rows), *shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def gradients() -> dict[str, np.ndarray]:
    """Spikes, pauses, sign flips and sweeps over twelve orders of magnitude, float64."""
    rng = np.random.default_rng(2018)
    powers, factors = _patterns()
    element = np.arange(SIZE)
    pattern = element % len(powers)
    # 41 powers from 20 down to -20 and again; 7 and 41 have no common factor. A sweep
    # has all of them by itself.
    scale = np.where(pattern == len(powers) - 1, _LARGEST, _LARGEST - element * 7 % 41)
    power = np.clip(powers[pattern].T + scale, -_LARGEST, _LARGEST)
    mantissa = rng.integers(1, _MANTISSA, size=(STEPS, SIZE), endpoint=True) / _MANTISSA
    sign = np.where(pattern == 5, 1, rng.choice([-1, 1], size=(STEPS, SIZE)))
    return _split(np.ldexp(sign * factors[pattern].T * mantissa, power))


def growing_gradients() -> dict[str, np.ndarray]:
    """Gradients whose magnitude never falls, so that no second moment does; float64."""
    rng = np.random.default_rng(1412)
    magnitude = np.cumsum(rng.integers(0, 2**7, size=(STEPS, SIZE)), axis=0) + 1
    sign = rng.choice([-1, 1], size=(STEPS, SIZE))
    return _split(np.ldexp(sign * magnitude, -20 + np.arange(SIZE) % 21))


def start() -> dict[str, np.ndarray]:
    """Parameters before the first step, between -2 and 2, every third of them zero; float64."""
    rng = np.random.default_rng(6980)
    values = rng.integers(-(2**11), 2**11, size=SIZE) / 2**10
    values[::3] = 0
    return {name: part[0] for name, part in _split(values[np.newaxis]).items()}


def checksum() -> str:
    """A fingerprint of `gradients` and `start`, to store beside what was computed from them."""
    digest = hashlib.sha256()
    for tree in (gradients(), start()):
        for name, array in tree.items():
            digest.update(name.encode())
            digest.update(array.astype("<f8").tobytes())
    return digest.hexdigest()
