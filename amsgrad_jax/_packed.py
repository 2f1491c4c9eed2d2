r"""Packed storage: encodes the three moments of a parameter in one 32-bit word, and decodes them.

====== ======================== =============================================================
bits   what                     how
====== ======================== =============================================================
31     sign of :math:`m`
30..19 :math:`\sqrt{x}`         the bits of a float32 without its last 19: 8 of exponent, 4 of
                                mantissa; rounded to nearest
18..8  :math:`\sqrt{v} / s`     fixed point, in units of :math:`2^{-10}`; stochastic rounding
7..0   :math:`|m| / s`          a float of 4 bits of mantissa with an offset of :math:`2^{-8}`,
                                up to 248; stochastic rounding
====== ======================== =============================================================

where :math:`m, v, x` are ``mu``, ``nu``, ``nu_max`` and :math:`s` is the largest power of two not
above the rounded :math:`\sqrt{x}`. The upper bits of a word are thus those of a float32: 0 before
the first gradient, NaN if a moment was not finite. A root of :math:`2^{64}`, the largest one,
decodes to an infinite maximum.

:math:`v \le x`, and by Cauchy and Schwarz :math:`|m| \le c \sqrt{v}`: so both are stored relative
to the maximum, without an exponent for the whole range of float32. The scale is a power of two, so
dividing by it is exact and needs no division. The maximum is rounded to nearest. As rounding is
monotone, the maximum of rounded numbers is the rounded maximum, whatever the number of steps. The
averages change by less than a unit in a step, and rounding to nearest would undo that. With
stochastic rounding the expectations of :math:`m` and of the root of :math:`v` are right. The square
of that root is too large by :math:`f(1-f)` of a squared unit for a fraction :math:`f`. Subtracting
the mean of that, 1/6, would be wrong: each step starts from a stored number, so that :math:`f` is
near 0 or 1 if :math:`v` changes slowly.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from amsgrad_jax import _rounding
from amsgrad_jax._rounding import as_bits, as_float
from amsgrad_jax._rule import Moments

DTYPE: Final = jnp.dtype("uint32")

# In place of random bits: half a unit for mu in the upper half, and for nu in the lower 19.
NEAREST: Final = np.uint32(1 << 31 | 1 << 18)


def _u(number: int) -> np.uint32:
    return np.uint32(number)


_SIGN, _ROOT = _u(0x80000000), _u(0x7FF80000)
_SCALE = _u(0xFF800000)  # the exponent of the root, and the sign
_ROOT_DROPPED = 19  # bits of a float32 that its rounded root lacks
_NU_AT, _NU = _u(8), _u(2047)
_SIZE, _SIZE_DROPPED = _u(255), 19
_SIZE_OFFSET: Final = np.float32(2.0**-8)
_SIZE_FIRST = _u((127 - 8) << 4)  # the offset's own bits, for which the code is 0
_INFINITE: Final = np.float32(2.0**64)  # the root whose square is infinite
_INFINITE_BITS, _INFINITY = _u((127 + 64) << 23), _u(255 << 23)

# Up to this mu/√nu all fits: 248 units of s, where √nu is at most 2 s and 3 % more by rounding.
_LARGEST_RATIO: Final = 119.0


def check_decay_rates(b1: Any, b2: Any) -> None:
    """Raises if ``mu/√nu`` can be larger than the word has room for; looks at numbers only."""
    if not isinstance(b1, float) or not isinstance(b2, float):
        return
    room = 1 - b1**2 / b2 if b2 > 0 else 1.0 if b1 == 0 else 0.0
    if room <= 0 or (1 - b1) / math.sqrt((1 - b2) * room) > _LARGEST_RATIO:
        raise ValueError(
            f"b1 = {b1!r} and b2 = {b2!r} do not fit storage='packed': it stores mu relative to "
            "√nu_max, for which b1**2 must be less than b2 and (1-b1)/√((1-b2)(1-b1**2/b2)) at "
            f"most {_LARGEST_RATIO:g}; storage='full' takes any b1 and b2"
        )


def pack(
    moments: Moments,
    bits: jax.Array | np.uint32 = NEAREST,
    before: jax.Array | None = None,
) -> jax.Array:
    """The words of real moments with ``nu <= nu_max``; rounded to nearest without random bits.

    With the words ``before`` this step the maximum is that of both: the larger of two rounded
    roots, which is the rounded larger root.
    """
    mu, nu, nu_max = (jnp.asarray(moment, jnp.float32) for moment in moments)
    root = _root_bits(nu_max)
    # All bits of a root are NaN. (`jnp.where` would be a call for XLA to inline in each leaf.)
    root = jax.lax.select(jnp.isfinite(mu), root, jnp.full_like(root, _ROOT))
    if before is not None:
        root = jnp.maximum(root, before & _ROOT)
    # 1/s: the exponent with the other sign. No division, which costs XLA for CPU a third loop.
    inverse = as_float(_u(254 << 23) - (root & _SCALE))

    # All bits of the float32 root; the last 19 are rounded away.
    # Factor by factor: where nothing was seen, 1/s is 2**127, and 2**29 times that infinite.
    fixed = (_root(nu) * inverse * np.float32(2.0**29)).astype(jnp.int32).astype(jnp.uint32)
    nu_code = (fixed + (bits & _u(2**19 - 1))) >> _u(19)
    if before is None:  # a state from elsewhere, with a nu that is a little above its maximum
        nu_code = jnp.minimum(nu_code, _NU)

    share = mu * inverse
    size = _rounding.drop_bits(jnp.abs(share) + _SIZE_OFFSET, _SIZE_DROPPED, bits)
    size = jnp.minimum(size - _SIZE_FIRST, _SIZE)
    return as_bits(share) & _SIGN | root | nu_code << _NU_AT | size


def unpack(word: jax.Array) -> Moments:
    """The float32 moments that words decode to."""
    s = as_float(word & _SCALE)  # with the sign of mu, which its square loses
    fixed = (word >> _NU_AT & _NU).astype(jnp.int32).astype(jnp.float32)
    size = _rounding.restore_bits((word & _SIZE) + _SIZE_FIRST, _SIZE_DROPPED) - _SIZE_OFFSET
    return Moments(
        mu=size * s,
        # Factor by factor, for the square of s can overflow.
        nu=fixed * fixed * (s * np.float32(2.0**-20)) * s,
        nu_max=_nu_max(word & _ROOT),
    )


def rounded_max(nu_max: jax.Array) -> jax.Array:
    """The maximum as a word stores it, rounded."""
    return _nu_max(_root_bits(nu_max))


def _root(nu: jax.Array) -> jax.Array:
    return jnp.minimum(jnp.sqrt(nu), _INFINITE)


def _root_bits(nu_max: jax.Array) -> jax.Array:
    return (as_bits(_root(nu_max)) + _u(1 << (_ROOT_DROPPED - 1))) & _ROOT


def _nu_max(root_bits: jax.Array) -> jax.Array:
    # Infinity is written out, though the square of 2**64 is infinite: XLA takes √(x·x) for |x|.
    overflown = root_bits == _INFINITE_BITS
    root = as_float(jax.lax.select(overflown, jnp.full_like(root_bits, _INFINITY), root_bits))
    return root * root
