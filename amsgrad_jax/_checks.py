"""Checks of the input, which raise as early as possible.

The value of a hyperparameter is checked if it is concrete; a traced one has only a shape and a
dtype. Trees are checked while they are traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import Any, Final, TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import optax

from amsgrad_jax import _names

_Kind = TypeVar("_Kind")

# Everything else may be any finite number from 0 on.
_DECAY_RATES = ("b1", "b2")

# The first arguments of the optimizers, where torch has the parameters.
_FIRST = ("learning_rate", "b1")

# JAX's shardings hold the number of devices as an int32.
MOST_DEVICES: Final = 2**31 - 1


def hyperparameter(name: str, value: Any, hint: str = "") -> float | jax.Array:
    """Returns ``value`` as a float or a 0-d array within its range, or raises."""
    is_decay_rate = name in _DECAY_RATES
    expected = f"a number in {'[0, 1)' if is_decay_rate else '[0, inf)'}"
    _scalar(name, value, expected, (jnp.floating, jnp.integer), hint, of_shape=ValueError)
    expected = f"{name} must be {expected}"
    dtype = jnp.result_type(value)
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
    one = value is None or isinstance(value, bool | int | float | complex | str)
    one = one or math.prod(getattr(value, "shape", (2,))) == 1
    hint = "" if one or name not in _FIRST else "; the optimizer gets the parameters in init"
    return hyperparameter(name, value, hint)


def flag(name: str, value: Any) -> bool:
    """Returns ``value`` if it is a bool, or raises."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {shown(value)}")
    return value


def real_scalar(name: str, value: Any, expected: str) -> float:
    """Returns ``value`` as a float, or raises unless it is a real number."""
    _scalar(name, value, expected, (jnp.floating, jnp.integer))
    return float(value)


def integer(name: str, value: Any) -> jax.Array:
    """Returns ``value`` as a 0-d array of integers, or raises."""
    _scalar(name, value, "an integer scalar", (jnp.integer,))
    return jnp.asarray(value)


def literal(name: str, value: Any, known: Collection[str], otherwise: str = "") -> str:
    """Returns ``value`` if it is one of the known names, or raises."""
    *names, last = [*map(repr, known), *([otherwise] if otherwise else [])]
    expected = f"{', '.join(names)} or {last}"
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    if value not in known:
        raise ValueError(f"unknown {name} {_short(value)}: it must be {expected}")
    return value


def _scalar(
    name: str,
    value: Any,
    expected: str,
    kinds: tuple[Any, ...],
    hint: str = "",
    of_shape: type[Exception] = TypeError,
) -> None:
    """Raises unless ``value`` is a number of Python, or a 0-d array, of one of the kinds."""
    try:  # whatever has a dtype: arrays of jax and numpy, also numpy's scalars
        dtype = jnp.dtype(value.dtype if hasattr(value, "dtype") else type(value))
    except TypeError:  # of no library that JAX knows
        dtype = jnp.dtype(object)
    is_of_kind = any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if not is_of_kind or jnp.shape(value) != ():
        error = of_shape if is_of_kind else TypeError
        raise error(f"{name} must be {expected}, got {shown(value)}{hint}")


def function(name: str, value: Any, of: str) -> None:
    """Raises unless ``value`` can be called; ``of`` says with what."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {shown(value)}")


_MASK = "mask must be a tree of bools, or a function from the parameters to one"


def mask(value: Any) -> None:
    """Raises unless ``value`` is a tree of bools, or a function, which is asked later."""
    if not _is_function_of_params(value):
        _bools(_MASK, value)


def masked(mask: Any, params: Any) -> list[bool]:
    """The bools of a mask, of a prefix of one, or of a function's result, for each parameter."""
    if _is_function_of_params(mask):
        mask = mask(params)
        _bools(f"{_MASK}; it returned something else", mask)
    try:
        of_leaves = jax.tree.map(
            lambda flag, part: jax.tree.map(lambda _: bool(flag), part), mask, params
        )
    except ValueError:
        raise ValueError(
            "mask must have the structure of the parameters, or of the upper part of their tree"
        ) from None
    return jax.tree.leaves(of_leaves)


def _is_function_of_params(mask: Any) -> bool:
    # A mask made like an Equinox module can be called, too: it has leaves, and they are bools.
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(map(_is_bool, leaves)))


def _is_bool(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return False
    return isinstance(leaf, bool) or (
        getattr(leaf, "dtype", None) == jnp.bool_ and jnp.shape(leaf) == ()
    )


def _bools(complaint: str, tree: Any) -> None:
    for name, leaf in _names.named_leaves(tree):
        if not _is_bool(leaf):
            where = f" at {name!r}" if name else ""
            raise TypeError(f"{complaint}, got {shown(leaf)}{where}")


def beside(name: str, tree: Any, updates: Any) -> Any:
    """The leaves of ``tree`` for which there is an update; raises if they do not fit."""
    is_none = lambda leaf: leaf is None  # noqa: E731
    try:
        found = jax.tree.map(
            lambda update, leaf: None if update is None else leaf, updates, tree, is_leaf=is_none
        )
        if jax.tree.structure(found) != jax.tree.structure(updates):
            raise ValueError
    except ValueError:
        raise ValueError(f"{name} must be a tree like the updates") from None
    leaves = jax.tree.leaves(found)
    if list(map(jnp.shape, leaves)) != list(map(jnp.shape, jax.tree.leaves(updates))):
        pairs = zip(_names.named_leaves(updates), leaves, strict=True)
        (leaf_name, update), leaf = next(
            pair for pair in pairs if jnp.shape(pair[0][1]) != jnp.shape(pair[1])
        )
        raise ValueError(
            f"{name} must be a tree like the updates, but at {leaf_name!r} {name} has "
            f"{describe(leaf)} and the updates have {describe(update)}"
        )
    return found


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
            f"state must be the {kind.__name__} that init returned, got {type(value).__name__}"
        )
    return value


def at(path: Any) -> str:
    """A leaf's name by its path, for an error."""
    return repr(_names.of_path(path)) if path else "the root"


def shown(value: Any) -> str:
    """A value of the wrong kind, for an error: itself only if it is short."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | complex | str):
        return f"{_short(value)} of type {kind}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if shape := tuple(value.shape):
            return f"an array of shape {shape}"
        is_traced = isinstance(value, jax.core.Tracer)
        return f"{'a traced one' if is_traced else _short(value)} of dtype {value.dtype}"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def describe(leaf: Any) -> str:
    """A leaf's dtype and shape, for an error."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


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


def arrays(what: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is an array, floating point or complex."""
    if all(hasattr(leaf, "dtype") and _kind(leaf.dtype) for leaf in jax.tree.leaves(tree)):
        return
    inexact(what, tree)
    for name, leaf in _names.named_leaves(tree):
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{what} must be arrays, but the leaf {name!r} is {shown(leaf)}: "
                "jax.numpy.asarray makes an array of it"
            )


def match(gradients: Any, stored: Any) -> None:
    """Raises unless ``gradients`` has the tree of what is stored, and leaves that fit it."""
    leaves, tree = jax.tree.flatten(gradients)
    stored_leaves, stored_tree = jax.tree.flatten(stored)
    if tree != stored_tree or not all(map(_fits, leaves, stored_leaves)):
        _find_mismatch(gradients, stored)


def _fits(gradient: Any, stored: Any) -> bool:
    if not hasattr(gradient, "dtype") or gradient.shape != stored.shape:
        return False
    kind = _kind(gradient.dtype)
    return kind is not None and (kind == "complex") == (_kind(stored.dtype) == "complex")


@functools.cache
def _kind(dtype: Any) -> str | None:
    """Whether a dtype is "real" or "complex"; None for what cannot be trained."""
    try:
        if not jnp.issubdtype(dtype, jnp.inexact):
            return None
        return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else "real"
    except TypeError:  # of another library
        return None


def _find_mismatch(gradients: Any, stored: Any) -> None:
    """Raises for the first leaf that does not fit; names cost more than all else in a trace."""
    got, expected = dict(_names.named_leaves(gradients)), dict(_names.named_leaves(stored))
    complaint = "the gradients do not match the optimizer state"
    for name, leaf in (got | expected).items():
        if name not in expected:
            raise ValueError(f"{complaint}: {name!r}, {describe(leaf)}, is not in the state")
        if name not in got:
            raise ValueError(
                f"{complaint}: {name!r} has no gradient, the state has {describe(leaf)}"
            )
    arrays("gradients", gradients)
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
    trees = map(str, map(jax.tree.structure, (gradients, stored)))
    short = " and ".join(text if len(text) <= 60 else f"{text[:60]}..." for text in trees)
    raise ValueError(f"{complaint}: their containers differ, {short}")


def extra(name: str) -> str:
    """How to install the packages of an extra; no package index has this package yet."""
    return f"run pip install '.[{name}]' in a clone of amsgrad-jax"
