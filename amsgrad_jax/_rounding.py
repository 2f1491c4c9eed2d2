"""Rounding float32 to fewer bits: to nearest, or stochastically without a random key.

The random bits are a hash of the leaf's path, the element's index and the number of the step. So
there is no random state, runs are bitwise reproducible, and the bits of an element do not depend
on how its array is split over devices.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# From step to step the bits of one element advance by an irrational part of their range, so
# that they fall evenly into it: the error of an average then grows with the logarithm of the
# number of steps, with independent bits it would grow with the root. The upper 13 bits of the
# number are those of the root of 2, the lower 19 an odd number next to those of the golden ratio:
# two sequences, for the two averages of one element.
_IRRATIONAL: Final = np.uint32(0xD41 << 19 | 0x4F1BD)


def salt(path: Any) -> np.uint32:
    """A number for a leaf, from its path: leaves of equal shape must not share their bits."""
    return np.uint32(zlib.crc32(jax.tree_util.keystr(path).encode()))


class Step(NamedTuple):
    """The part of the random bits that is common to all leaves in a step: uint32 scalars."""

    advance: jax.Array
    zero: jax.Array


def in_step(count: jax.Array) -> Step:
    """The part of the random bits that comes from the number of the step."""
    # And a zero that XLA cannot know, for `random_bits`.
    return Step(count.astype(jnp.uint32) * _IRRATIONAL, (count < 0).astype(jnp.uint32))


def random_bits(like: jax.Array, salt: jax.Array | np.uint32, step: Step) -> jax.Array:
    """32 random bits for each element of an array; their upper and lower halves are independent."""
    # XLA compiles equal kernels once. A salt written into them makes those of every leaf
    # differ: 200 leaves then took 15 s to compile in place of 4 (jax 0.10, CPU). So it is read
    # from a table, at a place that is always 0.
    salt = jax.lax.dynamic_slice(jnp.array([salt, ~salt]), (step.zero,), (1,)).reshape(())
    # A short multiplicative hash of the index, which a packed step pays for on a CPU. Added to
    # zeros like the array, and not made by a bare iota, so that on a mesh with explicit axes
    # the index has the sharding of the array.
    mixed = jnp.zeros_like(like, jnp.uint32) + salt
    stride = 0x21F0AAAD
    for axis in reversed(range(mixed.ndim)):
        size = mixed.shape[axis]
        positions = jnp.arange(size, dtype=jnp.uint32) * np.uint32(stride % 2**32)
        mixed += positions.reshape((1,) * axis + (size,) + (1,) * (mixed.ndim - axis - 1))
        stride *= size
    mixed ^= mixed >> np.uint32(13)
    return mixed * np.uint32(0xD35A2D97) + step.advance


def as_bits(values: jax.Array) -> jax.Array:
    """The 32 bits of float32 values."""
    return jax.lax.bitcast_convert_type(values, jnp.uint32)


def as_float(bits: jax.Array) -> jax.Array:
    """The float32 values that have these bits."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def drop_bits(values: jax.Array, dropped: int, bits: jax.Array | np.uint32) -> jax.Array:
    """Float32 values that are not negative, as integers without their last ``dropped`` bits.

    The upper bits of ``bits`` are added to the dropped part, and the carry rounds up; with uniform
    bits the expectation is the value itself. Values just below infinity can become infinite.
    """
    return (as_bits(values) + (bits >> np.uint32(32 - dropped))) >> np.uint32(dropped)


def restore_bits(codes: jax.Array, dropped: int) -> jax.Array:
    """The float32 values of what :func:`drop_bits` returned."""
    return as_float(codes << np.uint32(dropped))


def to_bfloat16(values: jax.Array, bits: jax.Array | np.uint32) -> jax.Array:
    """Float32 ``values`` in bfloat16; finite ones stay finite, others do not change."""
    largest = jnp.float32(jnp.finfo(jnp.bfloat16).max)
    codes = drop_bits(jnp.minimum(jnp.abs(values), largest), 16, bits)
    rounded = restore_bits(codes, 16)
    rounded = jnp.where(jnp.isfinite(values), jnp.copysign(rounded, values), values)
    return rounded.astype(jnp.bfloat16)


@jax.custom_jvp
def not_differentiable(values: Any) -> Any:
    """Returns ``values``; raises where something is differentiated through them."""
    # Integers have the derivative zero: without this, a meta-gradient would silently lack
    # everything that reaches it through rounded numbers.
    return values


@not_differentiable.defjvp
def _raise(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "stochastic rounding cannot be differentiated through: use storage='full' and "
        "optax.apply_updates for meta-gradients, or jax.lax.stop_gradient on the gradients"
    )
