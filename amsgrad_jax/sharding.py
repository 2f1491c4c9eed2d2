r"""Shardings of the optimizer state (ZeRO, stage 1), and bytes per device.

Data-parallel training keeps a copy of the state on every device. :func:`zero1_shardings` splits
the state over the data axis (ZeRO, stage 1). The training step stays as it is: the compiler
slices the gradients, each device computes its part of the step, and the results are
all-gathered. :func:`memory_report` counts bytes per device, from arrays or from shapes alone.

Both take a state, which may be ``jax.eval_shape(optimizer.init, params)``. A leaf of the state
belongs to a parameter if its path ends with the parameter's path and their shapes are equal: the
moments, and also the accumulators of ``optax.MultiSteps`` or the momentum of ``optax.trace``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)
from jax.tree_util import GetAttrKey, tree_leaves_with_path

from amsgrad_jax import _checks, _names, _state

__all__ = [
    "AnyMesh",
    "MemoryReport",
    "Unsplit",
    "Zero1",
    "memory_report",
    "zero1_shardings",
]

AnyMesh: TypeAlias = Mesh | AbstractMesh
"""A ``jax.sharding.Mesh``, or a ``jax.sharding.AbstractMesh`` for devices that need not exist."""


class Unsplit(NamedTuple):
    """An array of the state that ZeRO does not make smaller on each device.

    Args:
      path: Path of the array in the state, such as ``"0/mu/bias"``.
      shape: Global shape of the array.
      bytes: Bytes of the array on each device.
    """

    path: str
    shape: tuple[int, ...]
    bytes: int


class Zero1(NamedTuple):
    """What :func:`zero1_shardings` returns.

    Args:
      shardings: A ``NamedSharding`` for every leaf: a tree like the state.
      unsplit: The arrays of more than one element that cannot be split in any dimension.
    """

    shardings: Any
    unsplit: tuple[Unsplit, ...]


class MemoryReport(NamedTuple):
    """Bytes on each device; what :func:`memory_report` returns.

    Args:
      params: Bytes of the parameters.
      gradients: Bytes of the gradients, in the dtypes and with the shardings of the parameters.
      state: Bytes of the state without ZeRO, sharded like the parameters: a dict by field, such
        as ``"mu"``.
      zero1: Bytes of the state with ZeRO, sharded by :func:`zero1_shardings`: a dict by field.
    """

    params: int
    gradients: int
    state: dict[str, int]
    zero1: dict[str, int]


def zero1_shardings(
    state: Any, params: Any, mesh: AnyMesh, *, axis: str | Sequence[str] = "data"
) -> Zero1:
    r"""Shardings that split the optimizer's state over the data axis: ZeRO, stage 1.

    With :math:`n` devices along ``axis``, a leaf of :math:`B` bytes takes

    .. math::

        B / n

    bytes on each device instead of :math:`B`. The leaf keeps the sharding of its parameter. Of the
    dimensions that are not yet split, the largest that :math:`n` divides is split over ``axis``. A
    leaf whose parameter is already split over ``axis`` does not change. Counts and scalars are
    replicated.

    Pass the result as ``out_shardings``, both to ``jax.jit(optimizer.init)`` and to the step.

    Args:
      state: The optimizer's state, of any chain: arrays, or ``jax.ShapeDtypeStruct`` from
        ``jax.eval_shape(optimizer.init, params)``.
      params: The parameters: arrays, or ``jax.ShapeDtypeStruct``. A ``NamedSharding`` of theirs
        must be on ``mesh``; parameters without one count as replicated.
      mesh: The devices: a ``jax.sharding.Mesh`` or ``AbstractMesh``. Its axes may be explicit or
        automatic.
      axis: Name of the mesh axis over which batches are split, or a sequence of names. The more
        devices along it, the fewer bytes on each.

    Returns:
      The shardings, and the arrays that could not be split.

    Raises:
      TypeError: If ``mesh`` is not a mesh, ``axis`` not a name or names, a leaf not an array or
        shape, or if a parameter has a sharding that is not a ``NamedSharding``.
      ValueError: If ``mesh`` has no such axis, if ``axis`` has no name or one twice, if ``mesh``
        has more than 2**31 - 1 devices, if a parameter is on another mesh, or if a moment in
        ``state`` has no parameter of its path and shape.

    Examples:
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> params = {"kernel": jnp.ones((10, 64)), "bias": jnp.ones(64)}
      >>> optimizer = amsgrad_jax.amsgrad(1e-3)
      >>> shapes = jax.eval_shape(optimizer.init, params)
      >>> shardings, unsplit = sharding.zero1_shardings(shapes, params, mesh)
      >>> print(shardings[0].nu_max["kernel"].spec[1], unsplit)
      data ()
      >>> state = jax.jit(optimizer.init, out_shardings=shardings)(params)

    References:
      Rajbhandari, Rasley, Ruwase and He, `ZeRO: Memory Optimizations Toward Training Trillion
      Parameter Models <https://arxiv.org/abs/1910.02054>`_, SC 2020, section 5.1. How a compiler
      does it: Xu et al., `Automatic Cross-Replica Sharding of Weight Update in Data-Parallel
      Training <https://arxiv.org/abs/2004.13336>`_, 2020.
    """
    _check(state, params, mesh)
    leaves = _place(state, params, mesh, axis)
    unsplit = tuple(
        Unsplit(_names.of_path(leaf.path), jnp.shape(leaf.array), _bytes(leaf.array, leaf.zero1))
        for leaf in leaves
        if not leaf.is_split and math.prod(jnp.shape(leaf.array)) > 1
    )
    shardings = jax.tree.unflatten(jax.tree.structure(state), [leaf.zero1 for leaf in leaves])
    return Zero1(shardings, unsplit)


def memory_report(
    state: Any, params: Any, mesh: AnyMesh | int, *, axis: str | Sequence[str] = "data"
) -> MemoryReport:
    r"""Bytes of parameters, gradients and state on each device, without and with ZeRO, stage 1.

    It needs only shapes and dtypes: no array is allocated, and the devices need not exist. A leaf
    of :math:`N` elements of :math:`s` bytes that is split over :math:`n` devices takes

    .. math::

        s N / n.

    Activations and temporary arrays of the compiler are not counted; ``memory_analysis()`` of a
    compiled step reports those.

    Args:
      state: The optimizer's state, of any chain: arrays, or ``jax.ShapeDtypeStruct`` from
        ``jax.eval_shape(optimizer.init, params)``.
      params: The parameters: arrays, or ``jax.ShapeDtypeStruct``. Parameters without a
        ``NamedSharding`` count as replicated.
      mesh: The devices: a ``jax.sharding.Mesh``, a ``jax.sharding.AbstractMesh``, or only their
        number, such as 64.
      axis: Name of the mesh axis over which batches are split, or a sequence of names.

    Returns:
      The bytes on each device.

    Raises:
      TypeError: As :func:`zero1_shardings`, and if ``mesh`` is neither a mesh nor a number.
      ValueError: As :func:`zero1_shardings`, and if the number of devices is not from 1 to
        2**31 - 1.

    Examples:
      Bytes for 8.6 billion parameters on each of 64 devices, computed on a laptop:

      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import sharding
      >>> params = {"kernels": jax.ShapeDtypeStruct((32, 2**14, 2**14), jnp.bfloat16)}
      >>> state = jax.eval_shape(amsgrad_jax.amsgrad(1e-3, storage="packed").init, params)
      >>> report = sharding.memory_report(state, params, 64)
      >>> print(report.params, report.state["packed"], report.zero1["packed"])
      17179869184 34359738368 536870912

    References:
      Rajbhandari, Rasley, Ruwase and He, `ZeRO: Memory Optimizations Toward Training Trillion
      Parameter Models <https://arxiv.org/abs/1910.02054>`_, SC 2020, section 5.1, where the three
      moments in full storage are :math:`K = 12` of their formula.
    """
    if isinstance(mesh, bool) or not isinstance(mesh, int | Mesh | AbstractMesh):
        raise TypeError(
            "mesh must be a jax.sharding.Mesh, a jax.sharding.AbstractMesh or a number of devices, "
            f"got {mesh!r}"
        )
    if isinstance(mesh, int):
        if not 1 <= mesh <= _checks.MOST_DEVICES or not isinstance(axis, str):
            raise ValueError(
                f"mesh must be a number of devices from 1 to {_checks.MOST_DEVICES} along one "
                f"axis, got {mesh} along {axis!r}"
            )
        mesh = AbstractMesh((mesh,), (axis,))
    _check(state, params, mesh)
    of_params = sum(
        _bytes(array, _sharding(path, array, mesh)) for path, array in tree_leaves_with_path(params)
    )
    like_params, zero1 = Counter(), Counter()
    for leaf in _place(state, params, mesh, axis):
        like_params[leaf.field] += _bytes(leaf.array, leaf.like_params)
        zero1[leaf.field] += _bytes(leaf.array, leaf.zero1)
    return MemoryReport(of_params, of_params, dict(like_params), dict(zero1))


class _Leaf(NamedTuple):
    """A leaf of the state, and its shardings without and with ZeRO."""

    path: Any
    field: str
    array: Any
    like_params: NamedSharding
    zero1: NamedSharding
    is_split: bool


def _place(state: Any, params: Any, mesh: AnyMesh, axis: str | Sequence[str]) -> list[_Leaf]:
    axes = _axes(axis, mesh)
    of_params = {
        (path, jnp.shape(array)): _sharding(path, array, mesh)
        for path, array in tree_leaves_with_path(params)
    }
    _check_moments(state, of_params)

    def place(path: Any, array: Any) -> _Leaf:
        starts = range(len(path) + 1)
        shape = jnp.shape(array)
        start = next((i for i in starts if (path[i:], shape) in of_params), len(path))
        names = [key.name for key in path[:start] if isinstance(key, GetAttrKey)]
        like = of_params.get((path[start:], shape), NamedSharding(mesh, PartitionSpec()))
        spec, is_split = _split(like.spec, shape, axes, mesh)
        zero1 = NamedSharding(mesh, spec)
        return _Leaf(path, names[-1] if names else "state", array, like, zero1, is_split)

    return [place(path, array) for path, array in tree_leaves_with_path(state)]


def _check(state: Any, params: Any, mesh: Any) -> None:
    """Raises unless there is a mesh, and leaves have a shape and a dtype."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh or a jax.sharding.AbstractMesh, got {mesh!r}"
        )
    if mesh.size > _checks.MOST_DEVICES:
        raise ValueError(f"mesh must have at most {_checks.MOST_DEVICES} devices, got {mesh.size}")
    for name, tree in (("state", state), ("params", params)):
        for path, leaf in tree_leaves_with_path(tree):
            if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
                raise TypeError(
                    f"{name} must have arrays or jax.ShapeDtypeStruct for leaves, "
                    f"got {leaf!r} at {_checks.at(path)}"
                )


def _axes(axis: Any, mesh: AnyMesh) -> tuple[str, ...]:
    """The names of the axes, each once and in the mesh."""
    axes = (axis,) if isinstance(axis, str) else axis
    if not isinstance(axes, Sequence) or not all(isinstance(one, str) for one in axes):
        raise TypeError(f"axis must be a name or a sequence of names, got {axis!r}")
    if not axes or len({*axes}) < len(axes):
        raise ValueError(f"axis must name at least one axis, and each once; got {axis!r}")
    for one in axes:
        if one not in mesh.shape:
            raise ValueError(
                f"axis must be in the mesh, which has {', '.join(map(repr, mesh.shape))}; "
                f"got {one!r}"
            )
    return tuple(axes)


def _split(
    spec: PartitionSpec, shape: tuple[int, ...], axes: tuple[str, ...], mesh: AnyMesh
) -> tuple[PartitionSpec, bool]:
    """The spec with one dimension more split over ``axes``, and whether any is in the end."""
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    used = {
        name
        for entry in entries
        if entry is not None
        for name in (entry if isinstance(entry, tuple) else (entry,))
    }
    left = tuple(one for one in axes if one not in used)
    parts = math.prod(mesh.shape[one] for one in left)
    free = [
        dimension
        for dimension, (size, entry) in enumerate(zip(shape, entries, strict=True))
        if entry is None and size > 0 and size % parts == 0
    ]
    if not left or not free:
        return spec, left != axes
    largest = max(free, key=lambda dimension: shape[dimension])
    entries[largest] = left[0] if len(left) == 1 else left
    return PartitionSpec(*entries), True


def _bytes(array: Any, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(jnp.shape(array))) * jnp.result_type(array).itemsize


def _sharding(path: Any, param: Any, mesh: AnyMesh) -> NamedSharding:
    """The sharding of a parameter, as one on ``mesh``."""
    sharding = getattr(param, "sharding", None)
    if sharding is None or isinstance(sharding, SingleDeviceSharding):
        return NamedSharding(mesh, PartitionSpec())
    if not isinstance(sharding, NamedSharding):
        raise TypeError(
            f"params must have a NamedSharding or none, the leaf at {_checks.at(path)} has "
            f"{sharding}"
        )
    # What is traced knows the axes of its mesh, not the devices.
    both_exist = isinstance(sharding.mesh, Mesh) and isinstance(mesh, Mesh)
    if sharding.mesh != mesh if both_exist else sharding.mesh.shape != mesh.shape:
        raise ValueError(
            f"params must be on the given mesh, {mesh}; the leaf at {_checks.at(path)} is on "
            f"{sharding.mesh}"
        )
    return NamedSharding(mesh, sharding.spec)


def _check_moments(state: Any, of_params: Container[tuple[Any, tuple[int, ...]]]) -> None:
    """Raises unless every moment has a parameter of its path and shape."""
    for prefix, node in _state.find_states(state):
        for path, moment in tree_leaves_with_path(_state.like_params(node)):
            if (path, jnp.shape(moment)) not in of_params:
                raise ValueError(
                    f"state belongs to other parameters: {prefix!r} has moments of "
                    f"shape {list(jnp.shape(moment))} at {_checks.at(path)}, params have no such "
                    "leaf there"
                )
