r"""How one moment is written into fewer bits, element by element.

A :class:`Codec` is a dtype and a pair of functions. None has scales that several elements
share, so a stored moment has the shape, the sharding and the donation of its parameter.

================== ======= ============================ ==================================
codec              bytes   made for                     largest relative error
================== ======= ============================ ==================================
:data:`EXACT`      4 (8)   every moment                 0
:data:`BFLOAT16`   2       ``mu``                       :math:`2^{-7}`, 0 on average
:data:`UNSIGNED16` 2       ``nu``                       :math:`2^{-8}`, 0 on average
:data:`LOG8`       1       ``nu_max``                   0.143, from 1.1e-16 to 3.5e9
:data:`RATIO8`     1       ``mu``, as a share of √nu    :math:`2^{-3}`, 0 on average
================== ======= ============================ ==================================

An average moves by less than a unit of its code in each step; rounded to nearest it would
stand still. So the codecs of averages round up or down by chance, which leaves the
expectation right. The maximum is different: for a monotone encoder :math:`E`,
:math:`\max(E(a), E(b)) = E(\max(a, b))`, and the error of its code does not accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from amsgrad_jax import _rounding


@dataclass(frozen=True)
class Codec:
    r"""A way to hold one moment of every element between steps.

    Args:
      dtype: What is stored, such as ``"uint8"``; None for the dtype of the arithmetic,
        float32, or float64 where the parameter is. Zero must stand for the moment 0.
      encode: From float32 values and as many uint32 random bits to what is stored. For
        ``nu_max`` it must be monotone, ignore the bits, and map a decoded code to itself.
      decode: From what is stored to float32 values.
      stochastic: Whether ``encode`` uses the bits. Uniform bits must make the expectation
        of what is decoded the value itself, and the bits ``2**31`` round to nearest.
      ratio_bound: For ``mu`` only. If a number, not :math:`m_t` is encoded but
        :math:`m_t/\sqrt{v_t}`, and this is the largest such ratio that has a code.

    Examples:
      float16, rounded to nearest, for ``mu``:

      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import codecs
      >>> half = codecs.Codec(
      ...     "float16",
      ...     encode=lambda values, bits: values.astype(jnp.float16),
      ...     decode=lambda codes: codes.astype(jnp.float32),
      ...     stochastic=False,
      ... )
      >>> storage = amsgrad_jax.Storage(mu=half, nu=codecs.UNSIGNED16, nu_max=codecs.LOG8)
      >>> optimizer = amsgrad_jax.amsgrad(1e-3, storage=storage)
      >>> optimizer.init(jnp.zeros(3))[0].mu.dtype
      dtype('float16')
    """

    dtype: str | None
    encode: Callable[[jax.Array, jax.Array | np.uint32], jax.Array]
    decode: Callable[[jax.Array], jax.Array]
    stochastic: bool
    ratio_bound: float | None = None


def _float32(codes: jax.Array, dropped: int) -> jax.Array:
    return jax.lax.bitcast_convert_type(codes.astype(jnp.uint32) << np.uint32(dropped), jnp.float32)


EXACT: Final = Codec(
    None, encode=lambda values, bits: values, decode=lambda values: values, stochastic=False
)
"""The moment as it was computed."""


def _encode_bfloat16(values: jax.Array, bits: jax.Array | np.uint32) -> jax.Array:
    codes = _rounding.drop_bits(values, 16, bits).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(codes, jnp.bfloat16)


BFLOAT16: Final = Codec(
    "bfloat16",
    encode=_encode_bfloat16,
    decode=lambda codes: codes.astype(jnp.float32),
    stochastic=True,
)
r"""bfloat16, stochastic rounding.

Between two neighbours of 7 mantissa bits: a relative error below :math:`2^{-7}`, of
expectation 0, for normal numbers. Subnormal ones are off by less than :math:`2^{-133}`.
Infinities and NaN are kept; a finite value stays finite.
"""

BFLOAT16_NEAREST: Final = Codec(
    "bfloat16",
    encode=lambda values, bits: values.astype(jnp.bfloat16),
    decode=lambda codes: codes.astype(jnp.float32),
    stochastic=False,
)
r"""bfloat16, rounded to nearest, with a relative error up to :math:`2^{-8}`.

For comparison. An average in it stands still as soon as it moves by less than half a unit
in a step, that is for ``b2 = 0.999`` always.
"""

UNSIGNED16: Final = Codec(
    "uint16",
    encode=lambda values, bits: _rounding.drop_bits(values, 15, bits).astype(jnp.uint16),
    decode=lambda codes: _float32(codes, 15),
    stochastic=True,
)
r"""float32 without its sign and with 8 mantissa bits, stochastic rounding. For values >= 0.

A relative error below :math:`2^{-8}`, of expectation 0, for normal numbers. Subnormal ones
are off by less than :math:`2^{-134}`. Infinity and NaN are kept; a finite value stays finite.
"""

# A float32 read as an integer is a piecewise linear logarithm of 2**23 units an octave. LOG8
# has three codes in an octave, from 2**-53 on, where the root is 1e-8, the usual eps: what is
# smaller does not matter to an update. With code 255 it ends at 5/3 * 2**31.
_FIRST: Final = np.uint32((127 - 53) << 23)
_THIRD: Final = np.uint32((1 << 23) // 3 + 1)  # a multiplication, where divisions cost more
_LAST: Final = np.uint32(_FIRST + 254 * _THIRD)


def _encode_log8(values: jax.Array, bits: jax.Array | np.uint32) -> jax.Array:
    del bits
    raw = jax.lax.bitcast_convert_type(values, jnp.uint32) & _rounding.MAGNITUDE
    units = (jnp.clip(raw, _FIRST, _LAST) - _FIRST) * np.uint32(3)
    codes = ((units + np.uint32(1 << 22)) >> np.uint32(23)) + np.uint32(1)
    return jnp.where(raw < _FIRST, np.uint32(0), codes).astype(jnp.uint8)


def _decode_log8(codes: jax.Array) -> jax.Array:
    raw = _FIRST + (codes.astype(jnp.uint32) - np.uint32(1)) * _THIRD
    return _float32(jnp.where(codes == 0, np.uint32(0), raw), 0)


LOG8: Final = Codec("uint8", encode=_encode_log8, decode=_decode_log8, stochastic=False)
r"""Three codes an octave, rounded to nearest. For ``nu_max``.

From :math:`2^{-53}` (1.1e-16) to 3.5e9 a relative error up to 0.143, hence 7 % in the
denominator. What is smaller is 0, what is larger, infinite or NaN has the largest code. A
step divides by the larger of this and the current ``nu``: beyond the ends it is Adam's, and
never less than Adam's.
"""

# The ratio is moved away from zero by 2**-9 and keeps 3 mantissa bits, as a float32 without
# its last 20 bits. Near zero its codes are 2**-12 apart; 127 of them reach 120.
_OFFSET: Final = 2.0**-9
_OFFSET_CODE: Final = np.uint32((127 - 9) << 3)
_NOT_FINITE: Final = np.int8(-128)


def _encode_ratio8(values: jax.Array, bits: jax.Array | np.uint32) -> jax.Array:
    codes = _rounding.drop_bits(jnp.abs(values) + _OFFSET, 20, bits) - _OFFSET_CODE
    codes = jnp.minimum(codes, np.uint32(127)).astype(jnp.int8)
    return jnp.where(jnp.isfinite(values), jnp.where(values < 0, -codes, codes), _NOT_FINITE)


def _decode_ratio8(codes: jax.Array) -> jax.Array:
    size = _float32(jnp.abs(codes.astype(jnp.int32)).astype(jnp.uint32) + _OFFSET_CODE, 20)
    ratio = jnp.sign(codes).astype(jnp.float32) * (size - _OFFSET)
    return jnp.where(codes == _NOT_FINITE, jnp.nan, ratio)


RATIO8: Final = Codec(
    "int8", encode=_encode_ratio8, decode=_decode_ratio8, stochastic=True, ratio_bound=119.0
)
r"""One signed byte for :math:`r = m_t/\sqrt{v_t}`, stochastic rounding. For ``mu``.

The error is below :math:`(|r| + 2^{-9})/8` for :math:`|r| \le 119`, of expectation 0. Larger
ratios become 120, infinite ones and NaN become NaN. By Cauchy and Schwarz the ratio has a
bound,

.. math::

    |m_t| \le \frac{1-\beta_1}{\sqrt{(1-\beta_2)(1-\beta_1^2/\beta_2)}} \sqrt{v_t},

which is 7.3 for the usual 0.9 and 0.999. Where it is above 119, or :math:`\beta_1^2 \ge
\beta_2`, :func:`.scale_by_amsgrad` raises, as far as it knows the numbers.
"""
