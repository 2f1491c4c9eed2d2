"""Rounding float32 to fewer bits, up or down by chance, without a random key.

The chance comes from a hash of where an element stands (its index, its leaf) and from the
number of the step. So nothing is kept between steps, a run repeats itself bit by bit, and
an element has the same bits however its array is split over devices.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

MAGNITUDE: Final = np.uint32(0x7FFFFFFF)  # all bits of a float32 but its sign
INF: Final = np.uint32(0x7F800000)
_LARGEST: Final = np.uint32(0x7F7FFFFF)  # the largest finite float32
_NAN: Final = np.uint32(0x7FC00000)

# In place of random bits: an addition of half a unit, which rounds to nearest.
NEAREST: Final = np.uint32(1 << 31)

# From step to step the bits of one element advance by an irrational part of their range, so
# that they fall evenly into it: the error of an average then grows with the logarithm of the
# number of steps, with independent bits it would grow with the root. Two sequences, the
# golden ratio's and that of the root of 2, for the two averages of one element.
GOLDEN: Final = np.uint32(0x9E3779B9)
SILVER: Final = np.uint32(0x6A09E667)


def salt(path: Any) -> np.uint32:
    """A number for a leaf, from its path: leaves of equal shape must not share their bits."""
    return np.uint32(zlib.crc32(jax.tree_util.keystr(path).encode()))


def hashed_index(like: jax.Array, salt: jax.Array | np.uint32, count: jax.Array) -> jax.Array:
    """32 random bits for each element of an array, the same in every step."""
    # XLA compiles equal kernels once. A salt written into them makes those of every leaf
    # differ: 200 leaves in "tiny" then take 15 s to compile in place of 4 (jax 0.10, CPU). So
    # it is read from a table, at a place that is always 0, which XLA cannot know.
    table = jnp.array([salt, ~salt])
    salt = jax.lax.dynamic_index_in_dim(table, jnp.int32(count < 0), keepdims=False)
    # Added to zeros like the array, and not made by a bare iota, so that on a mesh with
    # explicit axes the index has the sharding of the array.
    index = jnp.zeros_like(like, jnp.uint32)
    stride = 1
    for axis in reversed(range(index.ndim)):
        size = index.shape[axis]
        positions = jnp.arange(size, dtype=jnp.uint32) * np.uint32(stride % 2**32)
        index += positions.reshape((size,) + (1,) * (index.ndim - axis - 1))
        stride *= size
    # The finaliser of a 32-bit hash: "lowbias32" of the hash-prospector project.
    bits = index ^ salt
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def at_step(hashed: jax.Array, count: jax.Array, irrational: np.uint32) -> jax.Array:
    """The bits of every element in one step."""
    return hashed + count.astype(jnp.uint32) * irrational


def drop_bits(values: jax.Array, dropped: int, bits: jax.Array | np.uint32) -> jax.Array:
    """The float32 ``values`` as integers without their last ``dropped`` bits.

    The magnitude is rounded up if the dropped part is larger than the upper bits of
    ``bits`` have it; with uniform bits its expectation is the value itself. A finite value
    never becomes infinite; infinities and NaN stay what they are.
    """
    raw = jax.lax.bitcast_convert_type(values, jnp.uint32)
    magnitude = raw & MAGNITUDE
    rounded = jnp.minimum(magnitude + (bits >> np.uint32(32 - dropped)), _LARGEST)
    rounded = jnp.where(magnitude < INF, rounded, jnp.where(magnitude > INF, _NAN, INF))
    return (raw & ~MAGNITUDE | rounded) >> np.uint32(dropped)


@jax.custom_jvp
def not_differentiable(values: Any) -> Any:
    """Returns ``values``; raises where something is differentiated through them."""
    # Integers have the derivative zero: without this, a meta-gradient would silently lack
    # everything that reaches it through rounded numbers.
    return values


@not_differentiable.defjvp
def _raise(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "rounding to codes cannot be differentiated through: use storage='full' and "
        "optax.apply_updates for meta-gradients, or jax.lax.stop_gradient on the gradients"
    )
