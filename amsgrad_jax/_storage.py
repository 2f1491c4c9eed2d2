"""How the moments are held between steps.

A step decodes what is stored, applies the rule, and encodes the result:
`empty` makes the first stored moments, `decode` and `encode` are the way in and
the way out. Only ``"full"`` exists so far: what is stored is what the rule
computes with, float32, or float64 where the parameter is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

_KNOWN: Final = ("full",)


class Moments(NamedTuple):
    """The three moments of one array."""

    mu: jax.Array
    nu: jax.Array
    nu_max: jax.Array


def check(storage: str) -> None:
    """Raises if ``storage`` names no way to hold the moments."""
    if not isinstance(storage, str):
        raise TypeError(f"storage must be a name, got {storage!r} of type {type(storage).__name__}")
    if storage not in _KNOWN:
        raise ValueError(
            f"unknown storage {storage!r}: the known ones are {', '.join(map(repr, _KNOWN))}"
        )


def empty(param: jax.typing.ArrayLike | jax.ShapeDtypeStruct) -> Moments:
    """The stored moments of a parameter that has not had a gradient yet."""
    mu_dtype = jnp.promote_types(jnp.result_type(param), jnp.float32)
    nu_dtype = jnp.finfo(mu_dtype).dtype  # the real dtype, also of complex params
    # Three separate buffers: one shared by two moments could not be donated.
    return Moments(*(jnp.zeros_like(param, dtype) for dtype in (mu_dtype, nu_dtype, nu_dtype)))


def decode(stored: Moments) -> Moments:
    """What the rule computes with."""
    return stored


def encode(fresh: Moments) -> Moments:
    """What is kept until the next step."""
    return fresh
