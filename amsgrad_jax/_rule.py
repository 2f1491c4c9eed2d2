"""AMSGrad for one array: the recursion and the update.

The conventions and the step number change only scalars, which are computed once per step
(`coefficients`). Each array then needs one formula without branches on the convention: `advance`
computes the new moments, `direction` the update from them. For packed moments `averages` computes
the two averages; their maximum is taken of words, in `_packed.py`. Reports and projections use
the `denominator`, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from amsgrad_jax._conventions import Convention

Number: TypeAlias = float | jax.Array


class Moments(NamedTuple):
    """The three moments of one array, decoded."""

    mu: jax.Array
    nu: jax.Array
    nu_max: jax.Array


class Coefficients(NamedTuple):
    r"""The scalars of step :math:`t`, common to all arrays of one dtype.

    Numerator and denominator of the update are both multiplied by the correction
    :math:`1 - \beta_1^t` of the first moment. That saves a rounding in each element
    and gives every convention the form

    .. math::

        x_t = \max(x_{t-1},\ \text{max\_scale} \cdot v_t), \qquad
        u_t = \frac{m_t}{\text{root\_scale} \cdot \sqrt{x_t + \text{eps\_root}} + \text{eps}}

    where Nesterov momentum replaces :math:`m_t` by
    :math:`\text{mu\_scale} \cdot m_t + (1-\beta_1) g_t`.
    """

    b1: jax.Array
    one_minus_b1: jax.Array
    b2: jax.Array
    one_minus_b2: jax.Array
    mu_scale: jax.Array
    max_scale: jax.Array
    root_scale: jax.Array
    eps: jax.Array
    eps_root: jax.Array


def correction(beta: Number, t: jax.Array, dtype: jnp.dtype) -> jax.Array:
    r""":math:`1 - \beta^t` by ``expm1``: the plain formula would lose four digits in float32."""
    if not isinstance(beta, jax.Array):  # in double precision, whatever `dtype` is
        if beta == 0:
            return jnp.ones_like(t)
        return -jnp.expm1(t * jnp.asarray(math.log1p(beta - 1), dtype))
    beta = beta.astype(dtype)
    is_large = beta >= 0.5  # below, nothing is lost
    log_beta = jnp.log1p(jnp.where(is_large, beta, 0.5) - 1)
    # At 0 the second derivative of JAX's power is 0 * inf. These are the powers of 0 with their
    # first two derivatives.
    is_zero = beta < jnp.finfo(dtype).tiny
    of_zero = jnp.where(t == 1, beta, jnp.where(t == 2, beta * beta, 0))
    power = jnp.where(is_zero, of_zero, jnp.where(is_large | is_zero, 0.25, beta) ** t)
    return jnp.where(is_large, -jnp.expm1(t * log_beta), 1 - power)


def times(factor: jax.Array, array: jax.Array) -> jax.Array:
    """A real factor times an array, real or complex."""
    # In a complex product the factor has an imaginary part of 0, which infinity makes a NaN of.
    return _by_parts(lambda part: factor * part, array)


def _by_parts(function: Callable[[jax.Array], jax.Array], array: jax.Array) -> jax.Array:
    if not jnp.iscomplexobj(array):
        return function(array)
    return jax.lax.complex(function(array.real), function(array.imag))


def coefficients(
    t: jax.Array,
    *,
    b1: Number,
    b2: Number,
    eps: Number,
    eps_root: Number,
    convention: Convention,
    nesterov: bool,
    dtype: jnp.dtype,
) -> Coefficients:
    """The scalars of step ``t``, which counts from 1, in ``dtype``."""

    def scalar(value: Number) -> jax.Array:
        return jnp.asarray(value, dtype)

    t = t.astype(dtype)  # a count that has reached the end of int32 can still take `t + 1`
    c1 = correction(b1, t, dtype) if convention.correct_mu else scalar(1)
    c2 = scalar(1) if convention.correct_nu == "never" else correction(b2, t, dtype)
    root_scale = c1 / jnp.sqrt(c2) if convention.correct_nu == "after_max" else c1
    mu_scale = scalar(1)
    if nesterov:  # as in optax.nadam: m_t is corrected as if it were one step further
        c1_next = correction(b1, t + 1, dtype) if convention.correct_mu else scalar(1)
        mu_scale = scalar(b1) * c1 / c1_next
    return Coefficients(
        b1=scalar(b1),
        one_minus_b1=scalar(1 - b1),  # after rounding, 1 - 0.999 would be off by 1e-5
        b2=scalar(b2),
        one_minus_b2=scalar(1 - b2),
        mu_scale=mu_scale,
        max_scale=1 / c2 if convention.correct_nu == "before_max" else scalar(1),
        root_scale=root_scale,
        eps=scalar(eps) * (root_scale if convention.eps_on == "raw_root" else c1),
        eps_root=scalar(eps_root),
    )


def averages(
    gradient: jax.Array, mu: jax.Array, nu: jax.Array, c: Coefficients
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two averages after one more gradient, and the value to take the maximum with."""
    if jnp.iscomplexobj(gradient):
        square = jnp.square(gradient.real) + jnp.square(gradient.imag)
    else:
        square = jnp.square(gradient)
    mu = times(c.b1, mu) + times(c.one_minus_b1, gradient)
    nu = c.b2 * nu + c.one_minus_b2 * square
    return mu, nu, c.max_scale * nu


def advance(gradient: jax.Array, moments: Moments, c: Coefficients) -> Moments:
    """The moments of one array after one more gradient."""
    mu, nu, fresh = averages(gradient, moments.mu, moments.nu, c)
    return Moments(mu, nu, jnp.maximum(moments.nu_max, fresh))


def denominator(nu_max: jax.Array, c: Coefficients) -> tuple[jax.Array, jax.Array]:
    """The denominator, never 0, and a mask of the coordinates without a gradient so far.

    Their root is 0, and is replaced by 1: its slope would be infinite, and 0/0 would be NaN.
    """
    radicand = nu_max + c.eps_root
    unseen = radicand == 0  # lets a NaN pass, so that it is seen
    root = jnp.sqrt(jax.lax.select(unseen, jnp.ones_like(radicand), radicand))
    return c.root_scale * root + c.eps, unseen


def direction(
    gradient: jax.Array, moments: Moments, c: Coefficients, *, nesterov: bool
) -> jax.Array:
    """The update of one array, from its moments after the gradient."""
    momentum = moments.mu
    if nesterov:
        momentum = times(c.mu_scale, momentum) + times(c.one_minus_b1, gradient)
    divisor, unseen = denominator(moments.nu_max, c)
    update = _by_parts(lambda part: part / divisor, momentum)
    # A coordinate without history has the update 0, for every eps, and the derivative 0.
    return jax.lax.select(unseen, jnp.zeros_like(update), update)
