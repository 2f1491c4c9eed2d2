"""Errors for bad input, raised at the earliest moment and written for a reader.

Hyperparameters are checked where they are concrete; a traced one has no value to
look at yet, only a shape and a dtype. Trees are checked while they are traced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import optax

_Kind = TypeVar("_Kind")

# Everything else may be any finite number from 0 on.
_DECAY_RATES = ("b1", "b2")

# JAX's shardings hold the number of devices as an int32.
MOST_DEVICES: Final = 2**31 - 1


def hyperparameter(name: str, value: Any) -> float | jax.Array:
    """Returns ``value`` as a float or a 0-d array within its range, or raises."""
    is_decay_rate = name in _DECAY_RATES
    expected = f"{name} must be a number in {'[0, 1)' if is_decay_rate else '[0, inf)'}"
    is_array = hasattr(value, "dtype")  # of jax or of numpy, also numpy's scalars
    if not is_array and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{expected}, got {value!r} of type {type(value).__name__}")
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{expected}, got {value!r} of dtype {dtype}")
    if jnp.shape(value) != ():
        raise ValueError(f"{expected}, got an array of shape {jnp.shape(value)}")
    if is_decay_rate and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{expected}, got one in {dtype}, where 0.999 rounds to {dtype.type(0.999)}: "
            "pass at least float32 (optax.inject_hyperparams has hyperparam_dtype for it)"
        )
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 <= float(value) < (1 if is_decay_rate else math.inf):
        raise ValueError(f"{expected}, got {float(value)!r}")
    # A jax array stays one: the same arithmetic, hence the same bits, as under jit.
    return value if isinstance(value, jax.Array) else float(value)


def hyperparameter_or_schedule(name: str, value: Any) -> float | jax.Array | optax.Schedule:
    """Like :func:`hyperparameter`, but lets a schedule through, to be checked when called."""
    if callable(value):
        return cast(optax.Schedule, value)
    return hyperparameter(name, value)


def flag(name: str, value: Any) -> bool:
    """Returns ``value`` if it is a bool, or raises."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")
    return value


def real_scalar(name: str, value: Any, expected: str) -> float:
    """Returns ``value`` as a float, or raises unless it is a real number."""
    is_number = isinstance(value, int | float) or hasattr(value, "dtype")
    dtype = jnp.result_type(value) if is_number else None
    kinds = (jnp.floating, jnp.integer)
    if (
        dtype is None
        or isinstance(value, bool)
        or not any(jnp.issubdtype(dtype, kind) for kind in kinds)
        or jnp.shape(value) != ()
    ):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return float(value)


def function(name: str, value: Any, of: str) -> None:
    """Raises unless ``value`` can be called; ``of`` says with what."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {value!r}")


def transformation(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """Returns ``value`` as a transformation that takes extra arguments, or raises."""
    # Not by its type: optax.MultiSteps, for one, is no optax.GradientTransformation.
    if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
        raise TypeError(
            f"{name} must be an optax.GradientTransformation, "
            f"got {value!r} of type {type(value).__name__}"
        )
    return optax.with_extra_args_support(value)


def state_of(kind: type[_Kind], value: Any) -> _Kind:
    """Returns ``value`` if it is a state of that kind, or raises."""
    if not isinstance(value, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init made, got {type(value).__name__}"
        )
    return value


def one_of(name: str, value: Any, kind: type[_Kind], known: Mapping[str, _Kind]) -> _Kind:
    """Returns what ``value`` names, or ``value`` itself if it is of that kind, or raises."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be a name or an amsgrad_jax.{kind.__name__}, "
            f"got {value!r} of type {type(value).__name__}"
        )
    if value not in known:
        raise ValueError(
            f"unknown {name} {value!r}: the known ones are {', '.join(map(repr, known))}; "
            f"or pass an amsgrad_jax.{kind.__name__} of your own"
        )
    return known[value]


def integer_scalar(name: str, value: Any) -> jax.Array:
    """Returns ``value`` as a 0-d array of integers, or raises."""
    is_number = isinstance(value, int) or hasattr(value, "dtype")
    if (
        not is_number
        or jnp.shape(value) != ()
        or not jnp.issubdtype(jnp.result_type(value), jnp.integer)
    ):
        raise TypeError(f"{name} must be an integer scalar, got {value!r}")
    return jnp.asarray(value)


def at(path: Any) -> str:
    """A leaf's path, for an error."""
    return jax.tree_util.keystr(path) or "the root"


def describe(leaf: Any) -> str:
    """A leaf's dtype and shape, for an error."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def inexact(what: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is floating point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{what} must be floating point or complex, but the leaf at {at(path)} has "
                f"dtype {getattr(dtype, '__name__', dtype)}: leave it out with optax.masked, "
                "optax.partition or equinox.filter, or convert it"
            )


def match(gradients: Any, mu: Any) -> None:
    """Raises unless ``gradients`` has the tree of the stored ``mu``, and leaves that fit it."""
    got = jax.tree_util.tree_leaves_with_path(gradients)
    expected = jax.tree_util.tree_leaves_with_path(mu)
    only_got = dict(got).keys() - dict(expected).keys()
    only_expected = dict(expected).keys() - dict(got).keys()
    complaint = "the gradients do not match the optimizer state"
    for path, leaf in got + expected:
        if path in only_got:
            raise ValueError(f"{complaint}: {at(path)}, {describe(leaf)}, is not in the state")
        if path in only_expected:
            raise ValueError(
                f"{complaint}: {at(path)} has no gradient, the state has {describe(leaf)}"
            )
    if jax.tree.structure(gradients) != jax.tree.structure(mu):
        raise ValueError(
            f"{complaint}: their containers differ, {jax.tree.structure(gradients)} "
            f"and {jax.tree.structure(mu)}"
        )
    inexact("gradients", gradients)
    for (path, gradient), (_, moment) in zip(got, expected, strict=True):
        if jnp.shape(gradient) != jnp.shape(moment):
            raise ValueError(
                f"{complaint}: {at(path)} is {describe(gradient)}, "
                f"the state was made for shape {list(jnp.shape(moment))}"
            )
        if jnp.iscomplexobj(gradient) != jnp.iscomplexobj(moment):
            raise TypeError(
                f"{complaint}: {at(path)} is {describe(gradient)}, the state was made for "
                f"{'complex' if jnp.iscomplexobj(moment) else 'real'} parameters"
            )


def extra(name: str) -> str:
    """How to install what an extra brings; no package index has this package yet."""
    return f"run pip install '.[{name}]' in a clone of amsgrad-jax"
