"""Keras 3's ``Adam`` and ``AdamW``: their state in, and out again.

Three attributes of the optimizer have the moments, lists in the order of its trainable
variables. They are private, and have had their names since before Keras 3. The public
list ``variables`` mixes moments with whatever else the optimizer's options add to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax

from amsgrad_jax._conventions import Convention
from amsgrad_jax._state import ScaleByAmsgradState
from amsgrad_jax.interop import _trees
from amsgrad_jax.interop._optax import convert

_MOMENTS = {"mu": "_momentums", "nu": "_velocities", "nu_max": "_velocity_hats"}


class FromKeras(NamedTuple):
    """What :func:`from_keras` makes of an optimizer.

    Args:
      state: The moments, trees like the parameters.
      arguments: ``learning_rate``, ``b1``, ``b2``, ``eps`` and ``convention``, for
        :func:`.amsgrad`; with weight decay also ``weight_decay`` and, if some variables
        are excluded from it, ``mask``, for :func:`.amsgradw`.
    """

    state: ScaleByAmsgradState
    arguments: dict[str, Any]


def from_keras(
    optimizer: Any,
    params: optax.Params,
    *,
    names: Sequence[str] | None = None,
    rename: _trees.Rename | None = None,
    convention: str | Convention = "keras",
    without_max: _trees.WithoutMax = "raise",
) -> FromKeras:
    r"""Takes the state of ``keras.optimizers.Adam(amsgrad=True)`` or ``AdamW`` over.

    The momentums, velocities and velocity hats of each variable become those of a leaf,
    and the iterations become ``count``. In the ``"keras"`` convention training goes on
    as it would have in Keras; another one gets its maximum from :func:`convert`. Kernels
    of Keras have the axes that those of JAX libraries have. The parameters themselves
    are not part of an optimizer; take them from the model's variables.

    Not taken over, because they are not AMSGrad: clipping of gradients and the moving
    average of parameters (``use_ema``).

    Args:
      optimizer: A built ``Adam`` or ``AdamW`` of Keras 3, with its JAX backend.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them.
      names: Names for the variables in the order of the optimizer, which is that of
        ``model.trainable_variables``; by default their paths in Keras, such as
        ``"sequential/dense/kernel"``.
      rename: The name of a variable to the path of a leaf: a function, or a mapping
        for the names that differ from it.
      convention: The convention to go on with, as given to :func:`.amsgrad`.
      without_max: What to do with an optimizer with ``amsgrad=False``: ``"raise"``, or
        ``"use_nu"`` to start the maximum from the velocities.

    Returns:
      The state and the arguments of :func:`.amsgrad` or :func:`.amsgradw`. :func:`put`
      puts the state into the state of a chain. A schedule of Keras is returned as it is:
      with the JAX backend it is one of optax, too.

    Raises:
      TypeError: If ``optimizer`` is none of the above.
      ValueError: If it is not built, has no maximum, or accumulates gradients; if names
        and shapes do not fit the parameters, one to one; or if ``convention`` or
        ``without_max`` is unknown.

    Examples:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from amsgrad_jax import interop
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
      >>> old = keras.optimizers.Adam(0.125, amsgrad=True)
      >>> old.build(model.trainable_variables)
      >>> old.apply([jnp.ones((2, 3)), jnp.ones(3)])
      >>> kernel, bias = (v.value for v in model.trainable_variables)
      >>> params = {"dense": {"kernel": kernel, "bias": bias}}
      >>> state, arguments = interop.from_keras(
      ...     old, params, rename=lambda path: path.removeprefix(f"{model.name}/")
      ... )
      >>> arguments
      {'learning_rate': 0.125, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-07, 'convention': 'keras'}
      >>> new = amsgrad_jax.amsgrad(**arguments)
      >>> opt_state = interop.put(new.init(params), state)
      >>> print(opt_state[0].count, opt_state[0].mu["dense"]["kernel"].shape)
      1 (2, 3)
    """
    _trees.check_without_max(without_max)
    paths = _paths(optimizer, names, rename)
    sources = dict(_MOMENTS)
    if not optimizer.amsgrad:
        if without_max == "raise":
            raise ValueError(
                f"amsgrad is off in the {type(optimizer).__name__}, which has no maximum: "
                "pass without_max='use_nu' to start it from the velocities"
            )
        sources["nu_max"] = sources["nu"]
    trees = {}
    for field, attribute in sources.items():
        leaves = _leaves(paths, getattr(optimizer, attribute))
        _trees.same_paths(f"{attribute} of the optimizer", leaves, _trees.by_path(params))
        trees[field] = _trees.like(params, leaves)
    state = convert(
        _trees.ours(params, int(optimizer.iterations), **trees),
        optimizer.beta_2,
        from_convention="keras",
        to_convention=convention,
    )
    arguments = {
        "learning_rate": _learning_rate(optimizer),
        "b1": optimizer.beta_1,
        "b2": optimizer.beta_2,
        "eps": optimizer.epsilon,
        "convention": convention,
    }
    if optimizer.weight_decay is not None:
        arguments["weight_decay"] = optimizer.weight_decay
        decays = map(optimizer._use_weight_decay, optimizer._trainable_variables)
        mask = dict(zip(paths, decays, strict=True))
        if not all(mask.values()):
            arguments["mask"] = _trees.like(params, mask)
    return FromKeras(state, arguments)


def to_keras(
    state: optax.OptState,
    params: optax.Params,
    optimizer: Any,
    *,
    names: Sequence[str] | None = None,
    rename: _trees.Rename | None = None,
    convention: str | Convention = "keras",
) -> None:
    r"""Puts a state of this package into ``keras.optimizers.Adam(amsgrad=True)``.

    The way back from :func:`from_keras`: sets the iterations and the moments of the
    optimizer, which keeps its hyperparameters. Nothing is set before everything fits.

    Args:
      state: A :class:`.ScaleByAmsgradState` or the state of any chain with it.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them.
      optimizer: A built ``Adam`` or ``AdamW`` of Keras 3 with ``amsgrad=True``. Its
        moments have the dtypes of the variables.
      names: Names for the variables; see :func:`from_keras`.
      rename: The name of a variable to the path of a leaf; see :func:`from_keras`.
      convention: The convention of ``state``, as given to :func:`.amsgrad`.

    Raises:
      TypeError: If ``optimizer`` is none of the above.
      ValueError: As :func:`from_keras`, and if ``state`` does not hold the moments of
        ``params``.

    Examples:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from amsgrad_jax import interop
      >>> params = {"w": jnp.ones(2)}
      >>> ours = amsgrad_jax.amsgrad(0.1, convention="keras")
      >>> _, state = ours.update({"w": jnp.array([1.0, 2.0])}, ours.init(params))
      >>> theirs = keras.optimizers.Adam(0.1, amsgrad=True)
      >>> theirs.build([keras.Variable(params["w"])])
      >>> interop.to_keras(state, params, theirs, names=["w"])
      >>> int(theirs.iterations)
      1
    """
    paths = _paths(optimizer, names, rename)
    if not optimizer.amsgrad:
        raise ValueError(
            f"amsgrad is off in the {type(optimizer).__name__}, which has no place for the "
            "maximum: make one with amsgrad=True"
        )
    taken = ScaleByAmsgradState(*_trees.take(state, params, _trees.OURS))
    taken = convert(taken, optimizer.beta_2, from_convention=convention, to_convention="keras")
    assignments = [(optimizer.iterations, taken.count)]
    for field, attribute in _MOMENTS.items():
        leaves = _trees.by_path(getattr(taken, field))
        variables = getattr(optimizer, attribute)
        _trees.same_paths(f"{attribute} of the optimizer", _leaves(paths, variables), leaves)
        assignments += zip(variables, [leaves[path] for path in paths], strict=True)
    for variable, value in assignments:
        variable.assign(_trees.in_place_of(variable.value, value))


def _paths(optimizer: Any, names: Sequence[str] | None, rename: _trees.Rename | None) -> list[str]:
    """The paths of the leaves that the variables of the optimizer are, in its order."""
    kind = type(optimizer).__name__
    # Others, as Nadam and Lamb, have momentums and velocities, too.
    if not hasattr(optimizer, "amsgrad") or not hasattr(optimizer, "iterations"):
        raise TypeError(f"optimizer must be Keras's Adam or AdamW, got {kind}")
    if not optimizer.built:
        raise ValueError(
            f"the {kind} is not built and has no moments yet: "
            "call optimizer.build(model.trainable_variables)"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"the {kind} accumulates gradients over {optimizer.gradient_accumulation_steps} "
            "steps, and what it has accumulated has no place here"
        )
    variables = optimizer._trainable_variables
    if names is None:
        names = [variable.path for variable in variables]
    elif len(names) != len(variables):
        raise ValueError(f"{len(names)} names for the {len(variables)} variables of the {kind}")
    if isinstance(rename, Mapping):
        for name in rename:
            if name not in names:
                raise ValueError(f"rename has {name!r}, which no variable is called")
        paths = [rename.get(name, name) for name in names]
    else:
        paths = [rename(name) if rename else name for name in names]
    first: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if path in first:
            raise ValueError(f"the variables {first[path]!r} and {name!r} are both {path!r}")
        first[path] = name
    return paths


def _leaves(paths: Sequence[str], variables: Sequence[Any]) -> _trees.Leaves:
    return dict(zip(paths, [variable.value for variable in variables], strict=True))


def _learning_rate(optimizer: Any) -> Any:
    # The property of that name would call a schedule, and return its present value.
    if hasattr(optimizer._learning_rate, "get_config"):
        return optimizer._learning_rate
    return float(optimizer.learning_rate)
