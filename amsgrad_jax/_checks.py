"""Errors for bad input, raised at the earliest moment and written for a reader.

Hyperparameters are checked where they are concrete; a traced one has no value to
look at yet, only a shape and a dtype. Trees are checked while they are traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import optax

from amsgrad_jax import _names

_Kind = TypeVar("_Kind")

# Everything else may be any finite number from 0 on.
_DECAY_RATES = ("b1", "b2")

# JAX's shardings hold the number of devices as an int32.
MOST_DEVICES: Final = 2**31 - 1


def shown(value: Any) -> str:
    """A value for an error: a short one as it is, others by their type, never a whole tree."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        shape = jnp.shape(value)
        return f"{value} of dtype {dtype}" if shape == () else f"an array of shape {shape}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        kind = "" if value is None else f" of type {type(value).__name__}"
        return f"{value!r:.80}{kind}" if isinstance(value, str) else f"{value!r}{kind}"
    return f"a {type(value).__name__}"


def number(name: str, value: Any, expected: str) -> Any:
    """Returns ``value`` if it is a real scalar, of Python or an array, or raises."""
    is_array = hasattr(value, "dtype")  # of jax or of numpy, also numpy's scalars
    if not is_array and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    kinds = (jnp.floating, jnp.integer)
    if not any(jnp.issubdtype(jnp.result_type(value), kind) for kind in kinds):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return value


def integer(name: str, value: Any) -> jax.Array:
    """Returns ``value`` as a 0-d array of integers, or raises."""
    value = number(name, value, "an integer scalar")
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name} must be an integer scalar, got {shown(value)}")
    return jnp.asarray(value)


def literal(name: str, value: Any, known: Iterable[str], otherwise: str = "") -> str:
    """Returns ``value`` if it is one of these strings, or raises; ``otherwise`` says what else."""
    *others, last = map(repr, known)
    expected = f"{', '.join(others)} or {last}{otherwise}"
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: it must be {expected}")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns ``value`` if it is a bool, or raises."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {shown(value)}")
    return value


def hyperparameter(name: str, value: Any) -> float | jax.Array:
    """Returns ``value`` as a float or a 0-d array within its range, or raises."""
    is_decay_rate = name in _DECAY_RATES
    expected = f"a number in {'[0, 1)' if is_decay_rate else '[0, inf)'}"
    value = number(name, value, expected)
    dtype = jnp.result_type(value)
    if is_decay_rate and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{name} must be {expected}, got one in {dtype}, where 0.999 rounds to "
            f"{dtype.type(0.999)}: pass at least float32 (optax.inject_hyperparams has "
            "hyperparam_dtype for it)"
        )
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 <= float(value) < (1 if is_decay_rate else math.inf):
        raise ValueError(f"{name} must be {expected}, got {float(value)!r}")
    # A jax array stays one: the same arithmetic, hence the same bits, as under jit.
    return value if isinstance(value, jax.Array) else float(value)


def hyperparameter_or_schedule(name: str, value: Any) -> float | jax.Array | optax.Schedule:
    """Like :func:`hyperparameter`, but lets a schedule through, to be checked when called."""
    if callable(value):
        return cast(optax.Schedule, value)
    return hyperparameter(name, value)


def real_scalar(name: str, value: Any, expected: str) -> float:
    """Returns ``value`` as a float, or raises unless it is a real number."""
    return float(number(name, value, expected))


def function(name: str, value: Any, of: str) -> None:
    """Raises unless ``value`` can be called; ``of`` says with what."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {shown(value)}")


def transformation(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """Returns ``value`` as a transformation that takes extra arguments, or raises."""
    # Not by its type: optax.MultiSteps, for one, is no optax.GradientTransformation.
    if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
        raise TypeError(f"{name} must be an optax.GradientTransformation, got {shown(value)}")
    return optax.with_extra_args_support(value)


def state_of(kind: type[_Kind], value: Any) -> _Kind:
    """Returns ``value`` if it is a state of that kind, or raises."""
    if not isinstance(value, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init made, got {type(value).__name__}"
        )
    return value


def at(path: Any) -> str:
    """A leaf's name by its path, for an error."""
    return repr(_names.of_path(path)) if path else "the root"


def describe(leaf: Any) -> str:
    """A leaf's dtype and shape, for an error."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def trainable(what: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is an array, floating point or complex."""
    if all(_kind(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(tree)):
        return
    for name, leaf in _names.named_leaves(tree):
        if isinstance(leaf, float | complex) and not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{what} must be arrays, but the leaf {name!r} is a Python {type(leaf).__name__}: "
                "jax.numpy.asarray makes an array of it"
            )
    inexact(what, tree)


def inexact(what: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is floating point or complex, an array or a number."""
    for name, leaf in _names.named_leaves(tree):
        dtype = getattr(leaf, "dtype", type(leaf))
        if not _kind(dtype):
            raise TypeError(
                f"{what} must be floating point or complex, but the leaf {name!r} has "
                f"dtype {getattr(dtype, '__name__', dtype)}: leave it out with optax.masked, "
                "optax.partition or equinox.filter, or convert it"
            )


def match(gradients: Any, like: Any) -> None:
    """Raises unless ``gradients`` has the tree of the moments ``like``, and leaves that fit."""
    # The comparison of whole trees is cheap. What differs is looked for only when it fails: for
    # 1,000 leaves the search takes as long as tracing the step itself.
    if jax.tree.structure(gradients) == jax.tree.structure(like) and all(
        _fits(gradient, moment)
        for gradient, moment in zip(jax.tree.leaves(gradients), jax.tree.leaves(like), strict=True)
    ):
        return
    got, expected = dict(_names.named_leaves(gradients)), dict(_names.named_leaves(like))
    complaint = "the gradients do not match the optimizer state"
    for name, leaf in (got | expected).items():
        if name not in expected:
            raise ValueError(f"{complaint}: {name!r}, {describe(leaf)}, is not in the state")
        if name not in got:
            raise ValueError(
                f"{complaint}: {name!r} has no gradient, the state has {describe(leaf)}"
            )
    trainable("gradients", gradients)
    for name, gradient in got.items():
        moment = expected[name]
        if jnp.shape(gradient) != jnp.shape(moment):
            raise ValueError(
                f"{complaint}: {name!r} is {describe(gradient)}, "
                f"the state was made for shape {list(jnp.shape(moment))}"
            )
        if jnp.iscomplexobj(gradient) != jnp.iscomplexobj(moment):
            raise TypeError(
                f"{complaint}: {name!r} is {describe(gradient)}, the state was made for "
                f"{'complex' if jnp.iscomplexobj(moment) else 'real'} parameters"
            )
    structures = (
        str(jax.tree.structure(tree)).removeprefix("PyTreeDef") for tree in (gradients, like)
    )
    short = " and ".join(text if len(text) <= 60 else f"{text[:60]}..." for text in structures)
    raise ValueError(f"{complaint}: their containers differ, {short}")


def _fits(gradient: Any, moment: Any) -> bool:
    kind = _kind(getattr(gradient, "dtype", None))
    # A packed word stands for a real parameter.
    expected = "complex" if _kind(moment.dtype) == "complex" else "real"
    return kind == expected and gradient.shape == moment.shape


@functools.cache
def _kind(dtype: Any) -> str | None:
    """``"real"``, ``"complex"``, or None for what cannot be trained."""
    if dtype is None:
        return None
    try:
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return "complex"
        return "real" if jnp.issubdtype(dtype, jnp.floating) else None
    except TypeError:  # a dtype of another library
        return None
