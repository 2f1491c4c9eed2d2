"""Conversion of the state of Keras 3's ``Adam`` and ``AdamW``.

Three attributes of the optimizer have the moments, lists in the order of its trainable
variables. They are private, and have had their names since before Keras 3. The public
list ``variables`` mixes moments with other variables of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import optax

from amsgrad_jax import _names
from amsgrad_jax._conventions import Convention, ConventionName
from amsgrad_jax._convert import convert_convention
from amsgrad_jax._state import ScaleByAmsgradState
from amsgrad_jax.interop import _moments, _pairing

_MOMENTS = {"mu": "_momentums", "nu": "_velocities", "nu_max": "_velocity_hats"}


class FromKeras(NamedTuple):
    """Result of :func:`from_keras`.

    Args:
      state: The count and the moments, trees like the parameters.
      arguments: A dict of ``learning_rate``, ``b1``, ``b2``, ``eps`` and ``convention``, for
        :func:`.amsgrad`; with weight decay also ``weight_decay`` and, if some variables
        are excluded from it, ``mask``, for :func:`.amsgradw`.
    """

    state: ScaleByAmsgradState
    arguments: dict[str, Any]


def from_keras(
    source: Any,
    params: optax.Params,
    *,
    names: Sequence[str] | None = None,
    rename: _pairing.Rename | None = None,
    convention: ConventionName | Convention = "keras",
    without_max: _moments.WithoutMax = "raise",
) -> FromKeras:
    r"""Converts the state of ``keras.optimizers.Adam(amsgrad=True)`` or ``AdamW``.

    The momentums, velocities and velocity hats of each variable become ``mu``, ``nu`` and
    ``nu_max`` of a leaf, and the iterations become ``count``. With ``convention="keras"`` the run
    continues as it would in Keras; for another convention, :func:`.convert_convention` converts
    the maximum. Kernels of Keras have the same order of axes as those of JAX libraries. The
    parameters themselves are not part of an optimizer; copy them from the model's variables.

    Gradient clipping and the moving average of parameters (``use_ema``) are not converted: they
    are not part of AMSGrad.

    Args:
      source: A built ``Adam`` or ``AdamW`` of Keras 3, with its JAX backend.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them: a tree with one leaf for each
        trainable variable.
      names: Names of the variables in the order of the optimizer, which is that of
        ``model.trainable_variables``; by default their paths in Keras, such as
        ``"sequential/dense/kernel"``.
      rename: Maps the name of a variable to the path of a leaf, such as ``"dense/kernel"``, or to
        None to leave it out: a function, or a mapping for the names that differ.
      convention: The convention of the optimizer that continues the run, as given to
        :func:`.amsgrad`.
      without_max: What to do with an optimizer with ``amsgrad=False``: ``"raise"``, or
        ``"use_nu"`` to start the maximum from the velocities, as if they had never been larger.

    Returns:
      The state and the arguments of :func:`.amsgrad` or :func:`.amsgradw`. Pass the state to
      :func:`set_moments` to put it into the state of a chain. A schedule of Keras is returned
      unchanged: with the JAX backend Optax can call it, too.

    Raises:
      TypeError: If ``source`` is not an ``Adam`` or ``AdamW`` of Keras.
      ValueError: If ``source`` is not built, has no maximum, accumulates gradients, or overwrites
        the variables with their average; if names
        and shapes do not match the parameters, one to one; or if ``convention`` or
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
      >>> opt_state = interop.set_moments(new.init(params), state)
      >>> print(opt_state[0].count, opt_state[0].mu["dense"]["kernel"].shape)
      1 (2, 3)
    """
    _moments.check_without_max(without_max)
    pairs = _pairs(source, params, names, rename)
    attributes = dict(_MOMENTS)
    if not source.amsgrad:
        if without_max == "raise":
            raise ValueError(
                f"amsgrad is off in the {type(source).__name__}, which has no maximum: "
                "pass without_max='use_nu' to start it from the velocities"
            )
        attributes["nu_max"] = attributes["nu"]
    fields = {
        field: {
            name: variable.value
            for name, variable in zip(pairs, getattr(source, attribute), strict=True)
            if name is not None
        }
        for field, attribute in attributes.items()
    }
    state = convert_convention(
        _moments.build(params, int(source.iterations), fields),
        source.beta_2,
        from_convention="keras",
        to_convention=convention,
    )
    arguments = {
        "learning_rate": _learning_rate(source),
        "b1": source.beta_1,
        "b2": source.beta_2,
        "eps": source.epsilon,
        "convention": convention,
    }
    if source.weight_decay is not None:
        arguments["weight_decay"] = source.weight_decay
        variables = zip(pairs, source._trainable_variables, strict=True)
        mask = {name: source._use_weight_decay(v) for name, v in variables if name is not None}
        if not all(mask.values()):
            arguments["mask"] = _names.like(params, mask)
    return FromKeras(state, arguments)


def to_keras(
    state: optax.OptState,
    params: optax.Params,
    target: Any,
    *,
    names: Sequence[str] | None = None,
    rename: _pairing.Rename | None = None,
    convention: ConventionName | Convention = "keras",
) -> None:
    r"""Writes a state of this package into ``keras.optimizers.Adam(amsgrad=True)``.

    The inverse of :func:`from_keras`: sets the iterations and the moments of the
    optimizer, which keeps its hyperparameters. Nothing is written unless everything matches.

    Args:
      state: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState`, or any tree that
        contains one, such as the state of a chain.
      params: The parameters, or ``jax.ShapeDtypeStruct`` for them: a tree with one leaf for each
        trainable variable.
      target: A built ``Adam`` or ``AdamW`` of Keras 3 with ``amsgrad=True``, which is changed in
        place. Its moments have the dtypes of the variables.
      names: Names of the variables in the order of the optimizer, which is that of
        ``model.trainable_variables``; by default their paths in Keras, such as
        ``"sequential/dense/kernel"``.
      rename: Maps the name of a variable to the path of a leaf, such as ``"dense/kernel"``, or to
        None to leave it out: a function, or a mapping for the names that differ.
      convention: The convention of ``state``, as given to :func:`.amsgrad`.

    Raises:
      TypeError: If ``target`` is not an ``Adam`` or ``AdamW`` of Keras.
      ValueError: As :func:`from_keras`, and if ``state`` does not contain the moments of
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
    pairs = _pairs(target, params, names, rename)
    if not target.amsgrad:
        raise ValueError(
            f"amsgrad is off in the {type(target).__name__}, which has no place for the "
            "maximum: make one with amsgrad=True"
        )
    moments = _moments.join_for(state, params)
    moments = convert_convention(
        moments, target.beta_2, from_convention=convention, to_convention="keras"
    )
    assignments = [(target.iterations, moments.count)]
    for field, attribute in _MOMENTS.items():
        of_target = zip(pairs, getattr(target, attribute), strict=True)
        variables = {name: variable for name, variable in of_target if name is not None}
        leaves = getattr(moments, field)
        _moments.same_names(f"{attribute} of the optimizer", variables, leaves)
        assignments += [(variables[name], leaf) for name, leaf in leaves.items()]
    for variable, value in assignments:
        variable.assign(_moments.copy(value, variable.value.dtype, variable.value.sharding))


def _pairs(
    optimizer: Any, params: Any, names: Sequence[str] | None, rename: _pairing.Rename | None
) -> list[str | None]:
    """The names of the leaves that the variables of the optimizer are, in its order.

    None for a variable that ``rename`` leaves out.
    """
    kind = type(optimizer).__name__
    # Others, as Nadam and Lamb, have momentums and velocities, too.
    if not hasattr(optimizer, "amsgrad") or not hasattr(optimizer, "iterations"):
        hint = ": pass its inner_optimizer" if hasattr(optimizer, "inner_optimizer") else ""
        raise TypeError(f"the optimizer must be Keras's Adam or AdamW, got {kind}{hint}")
    if not optimizer.built:
        raise ValueError(
            f"the {kind} is not built and has no moments yet: call "
            "optimizer.build(model.trainable_variables), before a file is loaded into it"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"the {kind} accumulates gradients over {optimizer.gradient_accumulation_steps} "
            "steps: the sum that it has accumulated cannot be converted"
        )
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        raise ValueError(
            f"the {kind} writes its average into the variables every "
            f"{optimizer.ema_overwrite_frequency} steps, which cannot be converted: set its "
            "ema_overwrite_frequency to None"
        )
    variables = optimizer._trainable_variables
    paths = [variable.path for variable in variables]
    if names is None:
        names = paths
    elif len(names) != len(variables):
        raise ValueError(f"{len(names)} names for the {len(variables)} variables of the {kind}")
    else:
        _pairing.check_order(names, paths)
    leaves = _names.by_name(params)
    found, tried = _pairing.pair(names, leaves, rename)
    for name, leaf, form in zip(names, found, tried, strict=True):
        if leaf is None and form is not None:
            raise _pairing.no_leaf(name, form, leaves)
    _pairing.require_all(leaves, found, names)
    return found


def _learning_rate(optimizer: Any) -> Any:
    # The property of that name would call a schedule, and return its present value.
    if hasattr(optimizer._learning_rate, "get_config"):
        return optimizer._learning_rate
    return float(optimizer.learning_rate)
